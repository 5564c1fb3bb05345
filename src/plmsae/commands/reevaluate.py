"""`plmsae reevaluate`: evaluate a registered SAE again, as far as something has changed."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plmsae.stages.reevaluation import Reevaluation

SUMMARY = "evaluate a registered SAE again where something has changed"
logger = logging.getLogger("plmsae")
_CRASH = 1  # exit code of a traceback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.description = (
        "Evaluate a registered SAE again, as far as its data, its PLM, the code or a parameter has changed, and "
        "compare with what it was registered with. Exit code 4 if a number has drifted; no alias is moved."
    )
    parser.add_argument("model", help="models:/NAME@champion or models:/NAME/3")
    parser.add_argument("--data", metavar="FILE", help="newest proteins: a file, s3:// or https:// (ingest.source)")
    parser.add_argument("--all", action="store_true", help="evaluate also what has not changed")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="copy the newest report and the history here")
    parser.add_argument("--webhook", metavar="URL", help="told when it drifted or failed (PLMSAE_WEBHOOK)")


def main(args: argparse.Namespace) -> int:
    """Print what was evaluated, why, and how every number stands; 4 if one has drifted."""
    from plmsae.errors import PlmsaeError
    from plmsae.params import ParamsFile
    from plmsae.registry import notices
    from plmsae.registry.reevaluation import notified
    from plmsae.registry.webhook import check
    from plmsae.stages.catalog import load_params, sections, stage
    from plmsae.stages.reevaluation import reevaluate
    from plmsae.stages.reevaluation_inputs import with_data
    from plmsae.stages.reevaluation_params import REEVALUATE, ReevaluateParams

    if hook := args.webhook or notices.address():
        check(hook)
    root = Path.cwd()
    try:
        file = ParamsFile(args.params, args.set)
        file.check_sections(sections())
        file.data.setdefault(REEVALUATE, {})
        with_data(file, args.set, args.data)
        settings = load_params(file, stage(REEVALUATE))
        assert isinstance(settings, ReevaluateParams)
        found = reevaluate(args.model, settings, root, everything=args.all, where=file.where)
        if args.report is not None:
            _report(found, args.report, root)
    except Exception as error:
        if hook:
            code = error.exit_code if isinstance(error, PlmsaeError) else _CRASH
            notices.tell(hook, notices.failed(args.model, code))
        raise
    if hook and _is_drifted(found) and found.told < found.number:
        message = notices.drifted(found.uri, found.number, found.causes, found.drift)
        if notices.tell(hook, message):
            notified(found.name, found.version, found.number, root)
    _print(args, found)
    return _exit_code(found)


def _is_drifted(found: Reevaluation) -> bool:
    from plmsae.registry.reevaluation import DRIFTED

    return found.verdict == DRIFTED


def _exit_code(found: Reevaluation) -> int:
    from plmsae.errors import GateError

    return GateError.exit_code if _is_drifted(found) else 0


def _print(args: argparse.Namespace, found: Reevaluation) -> None:
    if args.json:
        print(json.dumps(found.record(), sort_keys=True))
        return
    for evaluation, causes in found.causes.items():
        for cause, lines in causes.items():
            print(f"{evaluation} was evaluated again ({cause}): {'; '.join(lines)}")
    if not found.causes:
        print(f"{found.uri}: nothing has changed, nothing was evaluated")
    for each in found.drift:
        print(f"  {each.text()}")
    print(f"{found.uri} is {found.verdict}" if found.drift else f"{found.uri}: nothing to compare")


def _report(found: Reevaluation, folder: Path, root: Path) -> None:
    from plmsae.registry.reevaluation import download_report

    if not found.number:
        logger.warning("%s was not evaluated again so far: there is no report", found.uri)
        return
    download_report(found.name, found.version, found.number, folder, root)
