"""`plmsae compare`: any number of SAEs, of any models and sizes, on the same proteins."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plmsae.evaluation.member_pass import Member
    from plmsae.plms.base import ProteinLM

SUMMARY = "compare SAEs of any models and sizes on the same proteins"
THRESHOLDS = (0.0, 0.15, 0.5, 0.6, 0.8)
MATCH_THRESHOLDS = (0.5, 0.7, 0.9)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("sae", nargs="+", metavar="SAE", help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    parser.add_argument(
        "--sequences",
        type=Path,
        default=Path("outputs/ingest"),
        help="output folder of ingest, with splits and annotations (outputs/ingest)",
    )
    parser.add_argument(
        "--max-proteins", type=int, default=300, metavar="N", help="proteins per split, 0 for all (300)"
    )
    parser.add_argument(
        "--min-instances", type=int, default=25, metavar="N", help="annotations that a concept needs per split (25)"
    )
    parser.add_argument("--min-proteins", type=int, default=5, metavar="N", help="proteins with such a one (5)")
    parser.add_argument("--no-matching", action="store_true", help="do not match latents, which takes most memory")
    parser.add_argument("--num-resamples", type=int, default=1000, metavar="N", help="bootstrap resamples (1000)")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="coverage of the intervals (0.95)")
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="tokens per batch (4096)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="batches that run at once (2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the subset and the bootstrap (0)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="also write tables here (Parquet and CSV)")


def main(args: argparse.Namespace) -> int:
    """Print a table, or with --json an object with data, saes, differences and matches."""
    import torch

    from plmsae.evaluation.inputs import Proteins
    from plmsae.evaluation.sae_compare import compare
    from plmsae.evaluation.sae_compare_report import as_mapping, lines, write

    _check(args)
    members = load_members(args.sae, Path())
    torch.set_num_threads(args.threads)
    found = compare(
        Proteins(args.sequences),
        members,
        max_proteins=args.max_proteins or None,
        min_instances=args.min_instances,
        min_proteins=args.min_proteins,
        thresholds=THRESHOLDS,
        match=not args.no_matching,
        match_thresholds=MATCH_THRESHOLDS,
        num_resamples=args.num_resamples,
        confidence=args.confidence,
        max_tokens=args.max_tokens,
        threads=args.threads,
        seed=args.seed,
    )
    written: list[str] = []
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        written = write(found, args.output)
    if args.json:
        print(json.dumps(as_mapping(found), indent=1, allow_nan=False))
        return 0
    print("\n".join(lines(found, args.confidence)))
    if written:
        print(f"{', '.join(written)} -> {args.output}")
    return 0


def load_members(saes: list[str], root: Path) -> list[Member]:
    """Every SAE with its model; a model that several read is loaded once.

    Raises:
        UserError: An SAE does not exist, stands twice, does not take raw activations, or its model is of another
            revision.
        DataError: A damaged file.
        TryAgainError: The registry or the model's hub cannot be reached.
    """
    from plmsae.errors import UserError
    from plmsae.evaluation.member_pass import Member
    from plmsae.plms import load_plm
    from plmsae.registry.load import load

    models: dict[tuple[str, str], ProteinLM] = {}
    members: list[Member] = []
    for name in saes:
        if any(member.name == name for member in members):
            raise UserError(f"'{name}' is named twice", fix="name every SAE once; the first is the one to compare with")
        sae = load(name, root=root)
        config = sae.config
        key = config.plm, config.plm_revision
        if key not in models:
            models[key] = load_plm(*key, root=root)
        plm = models[key]
        sae.check_source(plm.name, plm.revision, config.layer, config.hook)
        plm.check_hook(config.layer, config.hook)
        members.append(Member(name, sae.eval().requires_grad_(False), plm))
    return members


def _check(args: argparse.Namespace) -> None:
    from plmsae.errors import UserError

    least = {
        "max_proteins": 0,
        "min_instances": 1,
        "min_proteins": 1,
        "num_resamples": 1,
        "max_tokens": 16,
        "threads": 1,
        "seed": 0,
    }
    for name, lowest in least.items():
        if getattr(args, name) < lowest:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} is {getattr(args, name)}", fix=f"give a whole number of at least {lowest}")
    if not (args.sequences / "sequences.parquet").is_file():
        raise UserError(
            f"'{args.sequences}' is not an output folder of ingest",
            where="--sequences",
            fix="run ingest (dvc repro ingest), or name its output folder",
        )
    if not 0 < args.confidence < 1:
        raise UserError(f"--confidence is {args.confidence}", fix="give a number between 0 and 1, e.g. 0.95")
