"""`plmsae promote`: make a registered version the champion if it passes the gates."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUMMARY = "make a registered version the champion if it passes the gates"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("name", help="registered name, e.g. plmsae.esm_small.layer3.topk")
    parser.add_argument("version", type=int, help="version number")
    parser.add_argument("--params", type=Path, help="parameter file with the gates (params.yaml if there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="promote.KEY=VALUE", help="override a gate")
    parser.add_argument("--reason", default="", help="why; recorded with the decision")


def main(args: argparse.Namespace) -> int:
    """Promote; a refusal prints the numbers, leaves every alias as it was and exits with 4."""
    from plmsae.params import ParamsFile
    from plmsae.registry.promote import promote
    from plmsae.stages.promote import PromoteParams

    path = args.params or Path("params.yaml")
    if args.params or args.set or path.is_file():
        params = ParamsFile(path, args.set).load(PromoteParams, "promote")
    else:
        params = PromoteParams()
    decision = promote(args.name, args.version, params.gates(), again=True, reason=args.reason)
    if args.json:
        print(json.dumps(decision.record(), sort_keys=True))
        return 0 if decision.promoted else decision.error().exit_code
    if not decision.promoted:
        raise decision.error()
    print(f"models:/{decision.name}/{decision.version} is champion")
    for reason in decision.reasons:
        print(f"  {reason}")
    return 0
