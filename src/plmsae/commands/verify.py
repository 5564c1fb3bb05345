"""`plmsae verify`: check every file of an output or SAE folder against its checksums, and a store in a bucket."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "check every file of an output or SAE folder against its checksums"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("path", type=Path, help="a stage output, a SAE or package folder, or a folder that holds some")
    parser.add_argument(
        "--contents",
        action="store_true",
        help="read activations back from their bucket; otherwise all chunks must be there and of their size",
    )


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
                **(_in_bucket(folder, args.contents) if manifest.params.get("store") else {}),
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
        bucket = f", {item['chunks']} chunks in {item['bucket']}" if "bucket" in item else ""
        print(f"ok  {item['folder']}  ({item['stage'] or 'bare SAE folder'}, {item['files']} files{bucket})")
    return 0


def _in_bucket(output: Path, contents: bool) -> dict[str, object]:
    """Hold the stores of an extraction, which lie in a bucket, against their index.

    Raises:
        UserError: No permission to read the bucket, or no such bucket.
        DataError: A chunk is missing, of another size or, with `contents`, of other bytes; the message names it.
        TryAgainError: The bucket cannot be reached.
    """
    from plmsae.activations.blocks import BlockStore
    from plmsae.activations.check import check_store
    from plmsae.activations.metadata import read_metadata
    from plmsae.activations.places import find_stores

    chunks, places = 0, []
    for folder in [*find_stores(output).values()] or [output]:
        metadata = read_metadata(folder)
        stores = [BlockStore(folder, split) for split in metadata.num_tokens]
        chunks += sum(len({block.chunk for block in store.blocks}) for store in stores)
        places.append(metadata.location or str(folder))
        if contents:
            check_store(folder)
    return {"bucket": ", ".join(places), "chunks": chunks}
