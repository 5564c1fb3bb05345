"""How the loss of an SAE falls with its width, its active latents and its training tokens, on our own language model.

    python -m scripts.scaling_study            # after `make run`; six minutes of processor time
    python -m scripts.scaling_study --render   # tables and figure from the numbers that are there
    python -m scripts.scaling_study --widths 256,1024,4096,16384 --active 16,32,64,128 --tokens 1e6,4e6,16e6

Every combination of width and active latents is trained for the largest number of tokens, and every width at one number
of active latents for the smaller ones, each with its own schedule. The SAEs of a length share each batch
(`plmsae.training.loop.train_all`). A length that is done is kept in .plmsae/scaling; one that was interrupted goes on
from its last checkpoint. Same store, numbers and threads: same bytes.

Writes docs/results/scaling.json, docs/images/scaling.png and the tables of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import PlmsaeError, UserError
from scripts.scaling_page import render

RESULTS = Path("docs/results/scaling.json")
WORK = Path(".plmsae/scaling")
logger = logging.getLogger("plmsae")


@dataclass(frozen=True)
class Study:
    """What is varied, and how.

    Attributes:
        widths: Dictionary sizes.
        active: Active latents per residue, k of TopK.
        tokens: Lengths of the trainings, ascending; the last one is that of the whole grid.
        at: The active latents at which the smaller lengths are trained.
        batch_size: Residues of a step.
        held_out: Held-out residues that are measured.
        seed: Of weights and order.
        threads: CPU threads; they change the last digits.
    """

    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    active: tuple[int, ...] = (8, 16, 32, 64)
    tokens: tuple[int, ...] = (62_500, 125_000, 250_000, 500_000)
    at: int = 32
    batch_size: int = 512
    held_out: int = 65_536
    seed: int = 0
    threads: int = 2

    def check(self) -> None:
        """Refuse what no law could be fitted to.

        Raises:
            UserError: Values that do not ascend, or too few of them.
        """
        for name in ("widths", "active", "tokens"):
            values = getattr(self, name)
            if list(values) != sorted({value for value in values if value > 0}) or len(values) < 3:
                raise UserError(
                    f"{values} are not at least three ascending numbers above 0", where=f"--{name}", fix="list them"
                )
        if self.at not in self.active:
            raise UserError(f"{self.at} is not one of {self.active}", where="--at", fix="choose one of --active")


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--activations", type=Path, default=Path("outputs/extract_activations"), help="activation store"
    )
    parser.add_argument("--widths", type=_numbers, default=Study.widths, metavar="N,N,...")
    parser.add_argument("--active", type=_numbers, default=Study.active, metavar="K,K,...")
    parser.add_argument("--tokens", type=_numbers, default=Study.tokens, metavar="T,T,...")
    parser.add_argument("--at", type=int, default=Study.at, metavar="K", help="k of the smaller lengths")
    parser.add_argument("--batch-size", type=int, default=Study.batch_size)
    parser.add_argument("--held-out", type=int, default=Study.held_out, help="held-out residues")
    parser.add_argument("--seed", type=int, default=Study.seed)
    parser.add_argument("--threads", type=int, default=Study.threads)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--root", type=Path, default=Path(), help="repository that is written to")
    parser.add_argument("--render", action="store_true", help="train nothing")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    results = args.root / RESULTS
    if not args.render:
        study = Study(**{name: getattr(args, name) for name in Study.__dataclass_fields__})
        study.check()
        found = run(study, args.activations, args.root / WORK, args.device)
        write_text(results, json.dumps(found, indent=1, sort_keys=True) + "\n")
    render(json.loads(results.read_text(encoding="utf-8")), args.root)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(float(part)) for part in text.split(","))


def run(study: Study, store: Path, work: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and measure every SAE of a study, or take what an earlier call has left.

    Args:
        study: What is varied.
        store: Activation store.
        work: Folder for checkpoints and for the rows of lengths that are done.
        device: Where to train.

    Returns:
        The study, what the activations are, and one row per SAE.

    Raises:
        UserError: There is no store.
        DataError: All trainings of a length diverged.
    """
    import torch

    from plmsae.activations.metadata import read_metadata
    from plmsae.artifacts.manifest import manifest_sha256
    from plmsae.stages.execute import code_sha256
    from plmsae.stages.train_sae import STAGE
    from plmsae.training.settings import resolve_device

    if not (store / "manifest.json").is_file():
        raise UserError(f"there are no activations in '{store}'", fix="run `make run`, or pass --activations FOLDER")
    torch.set_num_threads(study.threads)
    metadata = read_metadata(store)
    settings = {**asdict(study), "device": resolve_device(device)}
    rows: list[dict[str, Any]] = []
    for tokens in study.tokens:
        active = study.active if tokens == study.tokens[-1] else (study.at,)
        known = {"widths": study.widths, "active": active, "tokens": tokens, "store": manifest_sha256(store),
                 "code": code_sha256(STAGE), **{name: settings[name] for name in
                 ("batch_size", "held_out", "seed", "threads", "device")}}  # fmt: skip
        key = sha256_bytes(json.dumps(known, sort_keys=True).encode())[:16]
        done = work / f"{key}.json"
        if not done.is_file():
            logger.info("%d SAEs, %s tokens each", len(study.widths) * len(active), f"{tokens:,}")
            measured = _train(study, active, tokens, store, work / key, settings["device"])
            write_text(done, json.dumps(measured, sort_keys=True))
            shutil.rmtree(work / key, ignore_errors=True)
        rows += json.loads(done.read_text(encoding="utf-8"))
    place = {"plm": metadata.plm, "layer": metadata.layer, "hook": metadata.hook, "d_model": metadata.d_model,
             "train_rows": metadata.num_tokens["train"]}  # fmt: skip
    return {"study": settings, "activations": place, "saes": rows}


def _train(
    study: Study, active: Sequence[int], tokens: int, store: Path, checkpoints: Path, device: str
) -> list[dict[str, Any]]:
    """The SAEs of one length, from one pass over the store; those that diverged are left out, with a word."""
    from plmsae.activations.metadata import read_metadata
    from plmsae.activations.reader import ActivationReader
    from plmsae.params import validate
    from plmsae.training.data import Scaled
    from plmsae.training.export import held_out
    from plmsae.training.grid import expand
    from plmsae.training.loop import train_all
    from plmsae.training.member import Failed, Plan
    from plmsae.training.parameters import TrainSaeParams
    from plmsae.training.resolution import resolve

    metadata = read_metadata(store)
    scale = metadata.normaliser.scale
    num_steps = -(-tokens // study.batch_size)
    shared = {
        "expansion_factor": None,
        "dictionary_size": study.widths[0],
        "k": active[0],
        "tokens": tokens,
        "device": device,
        "batch_size": study.batch_size,
        "seed": study.seed,
        "threads": study.threads,
        "checkpoint_every": 200,
        "validate_every": max(1, num_steps // 10),
        "num_valid_rows": min(4096, study.held_out),
    }
    base = validate(TrainSaeParams, shared, section="train_sae")
    members = expand(base, {"dictionary_size": study.widths, "k": active})
    plans = []
    for name, params in members.items():
        resolved = resolve(params.model_dump(), metadata)
        plans.append(Plan(resolved.config, resolved.settings, name=name))
    train, valid = (ActivationReader(store, split, study.batch_size, study.seed) for split in ("train", "valid"))
    checkpoints.mkdir(parents=True, exist_ok=True)
    outcomes = train_all(plans, Scaled(train, scale), Scaled(valid, scale), checkpoints)
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            logger.warning("%s diverged and is left out: %s", outcome.name, outcome.problem)
    trained = [outcome.sae for outcome in outcomes if not isinstance(outcome, Failed)]
    rows = []
    for sae, metrics in zip(trained, held_out(trained, Scaled(valid, scale), study.held_out), strict=True):
        found = metrics.compute()
        rows.append(
            {
                "width": sae.config.dictionary_size,
                "k": sae.config.k,
                "tokens": num_steps * study.batch_size,
                "fvu": found["fvu"],
                # Of activations of unit mean squared norm this is the error itself, the loss of the training.
                "nmse": found["fvu"] * metrics.variance,
                "l0": found["l0"],
                "dead_fraction": found["dead_fraction"],
            }
        )
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlmsaeError as error:
        sys.exit(f"error: {error}")
