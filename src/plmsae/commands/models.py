"""`plmsae models`: list the registered SAEs, or delete a version that is not in use."""

from __future__ import annotations

import argparse
import json

SUMMARY = "list the registered SAEs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", nargs="?", help="only the versions of this name")
    parser.add_argument("--metrics", action="store_true", help="show every metric of every version")
    parser.add_argument(
        "--delete", type=int, metavar="VERSION", help="delete this version of NAME; never the champion or the previous"
    )
    parser.add_argument("--reason", default="", help="why; recorded with the deletion")


def main(args: argparse.Namespace) -> int:
    """Print a table, or with --json a list of objects with name, version, aliases, metrics and tags.

    With --delete, delete one version and print what was deleted.
    """
    from plmsae.registry.connection import connect
    from plmsae.registry.headlines import HEADLINES
    from plmsae.registry.versions import aliases_of_known, list_versions

    if args.delete is not None:
        return _delete(args)
    with connect() as client:
        if args.name:
            aliases_of_known(client, args.name)  # an unknown name is an error, not an empty list
        versions = list_versions(client, args.name)
    if args.json:
        rows = [
            {
                "name": item.name,
                "version": item.version,
                "aliases": list(item.aliases),
                "metrics": item.metrics,
                "tags": item.tags,
            }
            for item in versions
        ]
        print(json.dumps(rows, indent=1, sort_keys=True))
        return 0
    if not versions:
        print("nothing is registered yet; run the pipeline: dvc repro")
        return 0
    shown = [name for name in HEADLINES if any(name in item.metrics for item in versions)]
    header = ["NAME", "VERSION", "ALIASES", *(HEADLINES[name].short for name in shown)]
    table = [
        [item.name, str(item.version), ",".join(item.aliases) or "-"]
        + [HEADLINES[name].value(item.metrics, name) if name in item.metrics else "-" for name in shown]
        for item in versions
    ]
    widths = [max(len(row[column]) for row in [header, *table]) for column in range(len(header))]
    for row in [header, *table]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if args.metrics:
        for item in versions:
            print(f"\n{item.uri}")
            for name, value in item.metrics.items():
                print(f"  {name} = {value:.6g}")
    return 0


def _delete(args: argparse.Namespace) -> int:
    from plmsae.errors import UserError
    from plmsae.registry.delete import delete

    if not args.name:
        raise UserError("--delete needs the name", fix=f"plmsae models NAME --delete {args.delete}")
    done = delete(args.name, args.delete, args.reason)
    if args.json:
        print(json.dumps(done.record(), sort_keys=True))
    else:
        print(f"models:/{done.name}/{done.version} is deleted; its evidence was {done.evidence_sha256}")
    return 0
