"""`plmsae pull`: copy a registered SAE with its evidence to a folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "copy a registered SAE with its evidence to a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("model", help="models:/NAME@champion or models:/NAME/3")
    parser.add_argument("folder", nargs="?", type=Path, help="where to put it (NAME-vVERSION)")


def main(args: argparse.Namespace) -> int:
    """Pull and print where the package lies."""
    from plmsae.registry.load import pull

    pulled = pull(args.model, args.folder)
    if args.json:
        answer = {"folder": str(pulled.folder), "name": pulled.name, "version": pulled.version}
        print(json.dumps(answer, sort_keys=True))
    else:
        print(f"{pulled.name} version {pulled.version} -> {pulled.folder}")
        print(f'use it: plmsae.load("{pulled.folder}"), or: plmsae features SEQUENCE --model {pulled.folder}')
    return 0
