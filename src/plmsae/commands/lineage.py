"""`plmsae lineage`: what a registered SAE was made from, and which were made from something."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

SUMMARY = "show what a registered SAE was made from, or what was made from something"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        "model", nargs="?", help="models:/NAME@ALIAS, models:/NAME/VERSION, or NAME: its champion, else its candidate"
    )
    parser.add_argument(
        "--of",
        metavar="HASH",
        help="the way back: the versions made from this data, manifest, PLM revision, commit, image or Kubeflow run",
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="also draw it, as .png or .svg")


def main(args: argparse.Namespace) -> int:
    """Print a tree, with --of a table; with --json an object, with --of a list of objects."""
    from plmsae.errors import UserError

    if (args.model is None) == (args.of is None):
        raise UserError("name either a model or --of HASH", fix="plmsae lineage NAME, or: plmsae lineage --of SHA256")
    if args.of is not None:
        return _back(args)
    if args.figure is not None and args.figure.suffix not in (".png", ".svg"):
        raise UserError(f"figures are written as PNG or SVG, not '{args.figure.suffix}'", where="--figure")
    from plmsae.registry.lineage import lineage
    from plmsae.registry.lineage_figure import draw
    from plmsae.registry.lineage_text import tree

    found = lineage(args.model)
    found["runs"]["kfp_run_url"] = _page(found["runs"]["kfp_run_id"])
    if args.figure is not None:
        draw(found, args.figure)
    if args.json:
        print(json.dumps(found, indent=1, sort_keys=True))
        return 0
    print("\n".join(tree(found)))
    if args.figure is not None:
        print(f"drawn: {args.figure}")
    return 0


def _back(args: argparse.Namespace) -> int:
    from plmsae.errors import UserError
    from plmsae.registry.lineage import derived_from

    if args.figure is not None:
        raise UserError("--figure draws a model, not --of", fix="name one of the models that --of lists")
    rows: list[dict[str, Any]] = derived_from(args.of)
    if args.json:
        print(json.dumps(rows, indent=1, sort_keys=True))
        return 0
    if not rows:
        print(f"no registered version says that it came from {args.of}")
    for row in rows:
        aliases = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
        print(f"{row['uri']}{aliases}: {', '.join(row['what'])}")
    return 0


def _page(run_id: str | None) -> str | None:
    """Page of a Kubeflow run, where the address of Kubeflow is known here."""
    from plmsae.cluster.connection import HOST_VARIABLE, address

    if not run_id or not os.environ.get(HOST_VARIABLE, "").strip():
        return None
    return f"{address()}/#/runs/details/{run_id}"
