"""Tokens/s of whole trainings, ours against dictionary_learning, SAELens and sparsify on the same activations.

    python benchmarks/training.py [--d 320] [--n 2560] [--k 32] [--batch 2048] [--steps 24] [--rounds 3] [--threads 1]

A round is a process for each trainer, one after the other: it warms up for `--warmup` steps, and then a clock measures
`--steps` steps with all that the trainer does between them: reading, the step, its log, and one checkpoint. The clock
reads from outside, by the batches that the trainer asks for. Each peer is installed from the package registry into an
environment of its own (kept in `--environments`), on the torch of this one, and is run by its own training loop.

Each reads the same rows in the form it takes itself, warm (in the page cache); `trainers/*.py` says which. All train in
fp32, with Adam at the same rate and warm-up, and log and save once, in the middle of what is measured: ours with a look
at 4,096 held-out rows, and a checkpoint of all there is to resume from; a peer with its own, which may be less. Nothing
is known to be dead so early, so AuxK costs nobody anything. The FVU of held-out rows shows that the trainings are of a
kind: dictionary_learning's, which start and step as ours do, must end within 2 % of ours, the others, of which SAELens
leaves the norms of the atoms free and sparsify lets the rate fall from the start and does not clip, within 10 %.

glibc gives large blocks back to the kernel and faults them in again at the next step, which costs those most that make
the most of them. Its thresholds are environment variables, so one table has them raised, for everyone.

A ratio is the time of a peer over ours in the same round. CPU time hardly feels the neighbours, wall time does. The
wait for data is a share of the CPU time of one thread, or else of the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the environments of the tests

from trainers.clock import Job

from plmsae.activations.metadata import Normaliser, StoreMetadata, write_metadata
from plmsae.activations.writer import write_chunks, write_index
from plmsae.saes.matryoshka import FRACTIONS
from tests.saes.formats.environments import PACKAGES, kept_environment

TRAINERS = Path(__file__).parent / "trainers"
OURS = "plmsae"
PEERS = {
    "topk": ("dictionary_learning", "saelens", "sparsify"),
    "batch_topk": ("dictionary_learning", "saelens"),
    "matryoshka": ("dictionary_learning", "saelens"),
}
NUM_ROWS = {"train": 131_072, "valid": 8_192}
BLOCK_ROWS = 2048
FVU_TOLERANCE = {"dictionary_learning": 0.02, "saelens": 0.1, "sparsify": 0.1}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**28)}
Figures = dict[str, Any]


def main() -> None:
    parser = parser_of(__doc__)
    tables = (*PEERS, "allocator")
    parser.add_argument("--tables", nargs="+", choices=tables, default=tables)
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "plmsae" / "peers")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    pythons = {peer: kept_environment(peer, arguments.environments) for peer in PACKAGES}
    with tempfile.TemporaryDirectory(prefix="plmsae-") as folder:
        job = prepare(Path(folder), arguments)
        print_head(job, rounds)
        run("saelens", job, "prepare", pythons=pythons)
        for table in arguments.tables:
            if table == "allocator":
                measure(job, pythons, rounds, ALLOCATOR)
            else:
                measure(replace(job, architecture=table), pythons, rounds)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("d", 320), ("n", 2560), ("k", 32), ("batch", 2048), ("warmup", 5), ("steps", 24), ("rounds", 3),
        ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    return parser


def prepare(folder: Path, arguments: argparse.Namespace) -> Job:
    """Write the rows; returns a job on them, with `topk`."""
    names = ("d", "n", "k", "batch", "warmup", "steps", "learning_rate", "threads")
    shape = {name: getattr(arguments, name) for name in names}
    *first, _ = (round(fraction * arguments.n) for fraction in FRACTIONS["power_law"])
    sizes = [*first, arguments.n - sum(first)]
    scale = write_rows(folder, arguments.d)
    return Job(str(folder), str(folder / "out.json"), "topk", **shape, group_sizes=sizes, scale=scale)


def print_head(job: Job, rounds: int) -> None:
    print("# Whole trainings\n")
    print(
        f"d {job.d}, n {job.n}, k {job.k}, batch {job.batch}, fp32, threads {job.threads}; torch {torch.__version__}; "
        f"{rounds} interleaved rounds of {job.steps} steps ({job.steps * job.batch:,} tokens) after {job.warmup} of "
        "warm-up, with one log and one checkpoint. Figures are min / median / max; slower is the ratio to ours in the "
        "same round."
    )


def write_rows(folder: Path, d: int) -> float:
    """The rows in the forms that are read, all with the values that bf16 keeps; returns their scale."""
    # Not the seed of a trainer, whose first weights would be the directions.
    generator = torch.Generator().manual_seed(1_000_003)
    directions = torch.nn.functional.normalize(torch.randn(8 * d, d, generator=generator), dim=1)
    scale = 0.0
    for split, num_rows in NUM_ROWS.items():
        rows = torch.cat([sparse_rows(2048, directions, generator) for _ in range(num_rows // 2048)]).bfloat16()
        scale = scale or float(rows.float().square().sum(1).mean().sqrt())
        torch.save(rows.float(), folder / f"{split}.pt")
        order = torch.randperm(num_rows, generator=generator)
        write_index(folder / OURS / split, [write_chunks(folder / OURS / split, rows, order, BLOCK_ROWS)])
    metadata = StoreMetadata(
        plm="none",
        plm_revision="none",
        layer=0,
        hook="residual",
        dtype="bfloat16",
        d_model=d,
        block_rows=BLOCK_ROWS,
        num_tokens=NUM_ROWS,
        normaliser=Normaliser(scale=scale),
        sequences_sha256="0" * 64,
    )
    write_metadata(folder / OURS, metadata)
    return scale


def sparse_rows(num_rows: int, directions: Tensor, generator: torch.Generator) -> Tensor:
    """Sums of some of the directions, about 20 each with coefficients over 1, noise, and a mean."""
    active = torch.rand(num_rows, len(directions), generator=generator) < 20 / len(directions)
    z = torch.where(active, 1 + torch.randn(num_rows, len(directions), generator=generator).abs(), 0.0)
    return z @ directions + 0.05 * torch.randn(num_rows, directions.shape[1], generator=generator) + 0.3


def run(
    trainer: str,
    job: Job,
    *more: str,
    pythons: Mapping[str, Path] | None = None,
    allocator: Mapping[str, str] | None = None,
) -> Figures:
    """A process of a trainer; its figures, or nothing if it does not report."""
    description, out = Path(job.data) / "job.json", Path(job.out)
    description.write_text(json.dumps(asdict(job)))
    out.unlink(missing_ok=True)
    variables = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    variables |= allocator or {}
    python = (pythons or {}).get(trainer, sys.executable)
    command = [python, "-W", "ignore", TRAINERS / f"train_{trainer}.py", description, *more]
    if trainer != OURS:
        variables["PYTHONPATH"] = ""
    done = subprocess.run(command, cwd=job.data, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{trainer} failed:\n{done.stdout.decode()[-4000:]}")
    return json.loads(out.read_text()) if out.exists() else {}


def measure(job: Job, pythons: Mapping[str, Path], rounds: int, allocator: Mapping[str, str] | None = None) -> None:
    trainers = (OURS, *PEERS[job.architecture])
    figures: dict[str, list[Figures]] = {trainer: [] for trainer in trainers}
    for _ in range(rounds):
        for trainer in trainers:
            figures[trainer].append(run(trainer, job, pythons=pythons, allocator=allocator))
    print(f"\n## `{job.architecture}`{', thresholds of the allocator raised' if allocator else ''}\n")
    print("| | tokens per CPU second | tokens/s (wall) | slower than ours, CPU | wall | waits for data | "
          "peak MiB | held-out FVU |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for trainer in trainers:
        print(row(trainer, figures[trainer], figures[OURS], job), flush=True)
    fvu = {trainer: median(f["fvu"] for f in found) for trainer, found in figures.items()}
    for peer in trainers[1:]:
        assert abs(fvu[peer] / fvu[OURS] - 1) < FVU_TOLERANCE[peer], (job.architecture, fvu)


def row(trainer: str, figures: Sequence[Figures], ours: Sequence[Figures], job: Job) -> str:
    tokens = job.steps * job.batch
    name = "ours" if trainer == OURS else PACKAGES[trainer][0].replace("==", " ")
    cells = [name, *(spread([tokens / f[clock] for f in figures], ",.0f") for clock in ("cpu", "wall"))]
    for clock in ("cpu", "wall"):
        cells.append(spread([f[clock] / own[clock] for f, own in zip(figures, ours, strict=True)], ".1f"))
    waits = [f["waits"] for f in figures if f["waits"] is not None]
    cells.append(f"{median(waits):.1%}" if waits else "not told apart")
    cells += [f"{max(f['peak_mib'] for f in figures):,.0f}", f"{median(f['fvu'] for f in figures):.4f}"]
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], form: str) -> str:
    return " / ".join(format(value, form) for value in (min(values), median(values), max(values)))


if __name__ == "__main__":
    main()
