"""`plmsae verify`: check every file of an output or SAE folder against its checksums."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "check every file of an output or SAE folder against its checksums"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("path", type=Path, help="a stage output, a SAE or package folder, or a folder that holds some")


def main(args: argparse.Namespace) -> int:
    """Verify every complete folder at or below the path; the first damaged file ends it with exit code 3."""
    from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256, verify
    from plmsae.errors import UserError
    from plmsae.registry.load import is_sae_folder, load_folder

    if not args.path.is_dir():
        raise UserError(f"'{args.path}' is not a folder", fix="name a stage output, e.g. outputs/train_sae")
    verified: list[dict[str, object]] = []
    if (args.path / MANIFEST_NAME).is_file():
        folders = [args.path]
    else:
        folders = sorted(path.parent for path in args.path.rglob(MANIFEST_NAME))
    for folder in folders:
        manifest = verify(folder)
        verified.append(
            {
                "folder": str(folder),
                "stage": manifest.stage,
                "kind": manifest.kind,
                "files": len(manifest.files),
                "manifest_sha256": manifest_sha256(folder),
            }
        )
    if not folders and is_sae_folder(args.path):
        load_folder(args.path)
        verified.append({"folder": str(args.path), "stage": "", "kind": "sae", "files": 2, "manifest_sha256": ""})
    if not verified:
        raise UserError(
            f"'{args.path}' holds neither a complete stage output nor a SAE",
            fix="a stage that was cut off leaves no manifest: run it again, dvc repro",
        )
    if args.json:
        print(json.dumps(verified, indent=1, sort_keys=True))
        return 0
    for item in verified:
        print(f"ok  {item['folder']}  ({item['stage'] or 'bare SAE folder'}, {item['files']} files)")
    return 0
