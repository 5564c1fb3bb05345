"""`plmsae export`: write an SAE in the format of another library."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from plmsae.saes.formats import export_formats

SUMMARY = "write an SAE in the format of another library"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("model", metavar="SAE", help="models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    parser.add_argument("--format", required=True, help="one of " + ", ".join(export_formats()))
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write; must not exist")


def main(args: argparse.Namespace) -> int:
    """Export and print what lies where."""
    from plmsae.registry.load import load
    from plmsae.saes.formats import export_sae

    sae = load(args.model)
    export_sae(sae, args.output, args.format)
    files = sorted(path.name for path in args.output.iterdir())
    if args.json:
        answer = {"architecture": sae.config.architecture, "files": files, "format": args.format}
        print(json.dumps({**answer, "output": str(args.output)}, sort_keys=True))
    else:
        print(f"{sae.config.architecture} SAE as {args.format} -> {args.output}: {', '.join(files)}")
    return 0
