"""`plmsae rollback`: make the previous champion champion again."""

from __future__ import annotations

import argparse
import json

SUMMARY = "make the previous champion champion again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", help="registered name, e.g. plmsae.esm_small.layer3.topk")
    parser.add_argument("--reason", default="", help="why; recorded with the rollback")


def main(args: argparse.Namespace) -> int:
    """Roll back and print who is champion now; a second rollback undoes the first."""
    from plmsae.registry.rollback import rollback

    done = rollback(args.name, args.reason)
    if args.json:
        print(json.dumps(done.record(), sort_keys=True))
    else:
        print(f"models:/{done.name}/{done.to_version} is champion again, instead of version {done.from_version}")
        print(f"  undo it: plmsae rollback {done.name}")
    return 0
