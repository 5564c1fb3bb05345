"""SAEs of a grid from one read, against as many trainings one after the other, interleaved in one process.

    python benchmarks/sweep.py [--members 4] [--n 1024] [--tokens 24576] [--rounds 3] [--no-commands]

The activations are those of the bundled language model on random proteins. `stored` trains on their stored rows;
`on the fly` runs the language model while it trains (`train_sae.sequences`), which a sweep does once for all members.
A training is what the stage does: the steps, the looks at held-out rows, the maxima of the latents and the metrics at
the end. The SAEs of both ways are first checked to be the same bytes. The last line compares whole commands,
`plmsae run train_sae` as often as there are members with one `plmsae run sweep`: start of the process, checksums of the
input, figures and tracking included. One thread; the clock is CPU time, which hardly feels the neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
import yaml

from plmsae.activations.extract import extract
from plmsae.activations.plan import Settings
from plmsae.artifacts.checksums import sha256_file
from plmsae.artifacts.manifest import Manifest, list_files, write_manifest
from plmsae.plms import load_plm
from plmsae.training.grid import expand
from plmsae.training.parameters import TrainSaeParams
from plmsae.training.session import Inputs, Result, train_members

LAYER = 3
SPLITS = {"train": 64, "valid": 16}
LETTERS = list("LAGVSERTDIPKQNFYMHCW")  # from frequent to rare in Swiss-Prot
Run = Callable[[], Mapping[str, bytes]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("members", 4), ("n", 1024), ("tokens", 24_576), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--commands", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("plmsae").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="plmsae-") as folder:
        root = Path(folder)
        d_model = make_inputs(root)
        print(
            f"# Sweep\n\n{arguments.members} TopK SAEs with {arguments.n:,} latents on width {d_model}, "
            f"{arguments.tokens:,} residues in batches of 2048, 1 thread; torch {torch.__version__}; "
            f"{arguments.rounds} interleaved rounds.\n\nSeconds of CPU time, and their ratio in the same round: "
            "min / median / max.\n"
        )
        print(f"| | {arguments.members} trainings | one sweep | speed-up |\n|---|---|---|---|")
        for title, sequences in (("stored rows", None), ("on the fly", root / "sequences.parquet")):
            members = grid(arguments, sequences)
            alone, together = one_by_one(root, members, sequences), at_once(root, members, sequences)
            if alone() != together():
                raise SystemExit(f"{title}: a member of the sweep is not what training it alone gives")
            print(row(title, alone, together, arguments.rounds, time.process_time), flush=True)
        if arguments.commands:
            whole = commands(root, arguments)
            print(row("whole commands, stored rows", *whole, arguments.rounds, children_seconds), flush=True)


def make_inputs(root: Path) -> int:
    """A table of random proteins and the store of their activations; returns the width."""
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(3, 3 + len(LETTERS))
    rows = []
    for split, number in SPLITS.items():
        for length in generator.integers(60, 340, number):
            letters = generator.choice(LETTERS, length, p=weights / weights.sum())
            rows.append((f"{split}{len(rows):05d}", 0, "".join(letters), int(length), split))
    table = pd.DataFrame(rows, columns=["accession", "offset", "sequence", "length", "split"])
    table.to_parquet(root / "sequences.parquet", index=False)
    plm = load_plm("esm_small")
    store = root / "outputs" / "extract_activations"
    with contextlib.redirect_stderr(io.StringIO()):
        extract(plm, table, store, root / "parts", Settings(layer=LAYER), sequences_sha256="0" * 64)
    describe(store, "activations")
    (root / "outputs" / "ingest").mkdir()
    describe(root / "outputs" / "ingest", "sequences")
    return plm.d_model


def describe(folder: Path, kind: str) -> None:
    facts = {"params": {}, "inputs": {}, "source_files": {}, "environment": {}}
    write_manifest(folder, Manifest(stage="benchmark", kind=kind, files=list_files(folder), **facts))


def base(arguments: argparse.Namespace, sequences: Path | None) -> dict[str, object]:
    live = {"sequences": str(sequences), "sequences_sha256": sha256_file(sequences)} if sequences else {}
    return {
        "expansion_factor": None,
        "dictionary_size": arguments.n,
        "tokens": arguments.tokens,
        "batch_size": 2048,
        "num_latent_max_rows": 8192,
        "num_test_rows": 8192,
        "threads": 1,
        "device": "cpu",
        **live,
    }


def values(arguments: argparse.Namespace) -> list[int]:
    return [8 * (place + 1) for place in range(arguments.members)]


def grid(arguments: argparse.Namespace, sequences: Path | None) -> dict[str, TrainSaeParams]:
    return expand(TrainSaeParams.model_validate(base(arguments, sequences)), {"k": values(arguments)})


def train(root: Path, members: Mapping[str, TrainSaeParams], sequences: Path | None) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(dir=root) as checkpoints, contextlib.redirect_stderr(io.StringIO()):
        inputs = Inputs(root / "outputs" / "extract_activations", sequences, root, Path(checkpoints))
        ended = train_members(members, inputs)
    saes = {name: end.sae for name, end in ended.items() if isinstance(end, Result)}
    return {name: b"".join(t.numpy().tobytes() for t in sae.state_dict().values()) for name, sae in saes.items()}


def one_by_one(root: Path, members: Mapping[str, TrainSaeParams], sequences: Path | None) -> Run:
    return lambda: {k: v for name in members for k, v in train(root, {name: members[name]}, sequences).items()}


def at_once(root: Path, members: Mapping[str, TrainSaeParams], sequences: Path | None) -> Run:
    return lambda: train(root, members, sequences)


def commands(root: Path, arguments: argparse.Namespace) -> tuple[Callable[[], object], Callable[[], object]]:
    """The command line, in the working folder, on stored rows."""
    defaults = TrainSaeParams().model_dump(mode="json")
    sections = {
        "train_sae": {**defaults, **base(arguments, None)},
        "sweep": {"grid": {"k": values(arguments)}, "select_by": "fvu"},
    }
    (root / "params.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}

    def plmsae(*options: str) -> None:
        command = [sys.executable, "-m", "plmsae.cli", "run", *options]
        subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)

    def alone() -> None:
        for k in values(arguments):
            plmsae("train_sae", "--set", f"train_sae.k={k}")

    return alone, lambda: plmsae("sweep")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def row(
    title: str,
    alone: Callable[[], object],
    together: Callable[[], object],
    rounds: int,
    clock: Callable[[], float],
) -> str:
    """One line of the table; the way that goes first changes from round to round."""
    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    for number in range(rounds):
        ways = [("alone", alone), ("together", together)]
        for name, way in ways if number % 2 == 0 else reversed(ways):
            start = clock()
            way()
            seconds[name].append(clock() - start)
    ratios = [one / other for one, other in zip(seconds["alone"], seconds["together"], strict=True)]
    cells = [*(spread(seconds[name], "{:.2f}") for name in seconds), spread(ratios, "{:.2f}")]
    return f"| {title} | {' | '.join(cells)} |"


def spread(numbers: list[float], form: str) -> str:
    return " / ".join(form.format(value) for value in (min(numbers), median(numbers), max(numbers)))


if __name__ == "__main__":
    main()
