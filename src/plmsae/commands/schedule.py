"""`plmsae schedule`: recurring runs of Kubeflow from a file in git."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.commands.compiling import add_compile_arguments, add_skip_argument, compiled, image_of

if TYPE_CHECKING:
    from plmsae.cluster.finding import Finding
    from plmsae.cluster.package import Package
    from plmsae.cluster.recurring import Change, Recurring, Wanted
    from plmsae.cluster.schedules import Schedule
    from plmsae.params import ParamsFile

SUMMARY = "start pipelines on Kubeflow by the clock, from a file"
FILE = "pipelines/schedules.yaml"
_DONE = {
    "create": "created",
    "replace": "replaced",
    "enable": "enabled",
    "disable": "disabled",
    "tidy": "tidied",
    "unchanged": "unchanged",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.description = (
        "Recurring runs of Kubeflow from a file in git. The address comes from --host or KFP_HOST, a bearer token only "
        "from KFP_TOKEN."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    apply = actions.add_parser("apply", help="make the recurring runs what the file says")
    listing = actions.add_parser("list", help="show them, and what is other than in the file")
    delete = actions.add_parser("delete", help="delete one")
    for action in (apply, listing, delete):
        # Left out of the name space if it is not given, for it may stand before the action as well.
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print machine-readable JSON"
        )
        action.add_argument("--host", help="address of Kubeflow Pipelines (KFP_HOST)")
        action.add_argument("--namespace", help="your namespace, on a Kubeflow with several users")
    for action in (apply, listing):
        action.add_argument("file", nargs="?", type=Path, default=Path(FILE), help=f"the schedules ({FILE})")
        action.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (params.yaml)")
        add_compile_arguments(action)
    apply.add_argument("--check", action="store_true", help="say what would be done, and change nothing")
    apply.add_argument("--prune", action="store_true", help="delete those made here that the file no longer names")
    add_skip_argument(apply)
    delete.add_argument("name", help="name of the schedule")


def main(args: argparse.Namespace) -> int:
    """Apply, list or delete."""
    return {"apply": _apply, "list": _list, "delete": _delete}[args.action](args)


def _apply(args: argparse.Namespace) -> int:
    """Check everything first; then schedule by schedule, so that what is done stays done if one fails."""
    from plmsae.cluster.connection import address, connect, translated
    from plmsae.cluster.finding import exit_code, refuse
    from plmsae.cluster.recurring import delete, listed, make_so, planned
    from plmsae.cluster.schedules import read_schedules, refuse_examples

    host = address(args.host)
    schedules = read_schedules(args.file)
    refuse_examples(schedules, args.file)
    wanted = _wanted(args, schedules, look_up="images" not in args.skip)
    with connect(host, args.namespace) as client:
        with translated(host):
            found = listed(client)
        plan = [planned(item, [run for run in found if run.name == item.name]) for item, _ in wanted.values()]
        gone = [run for run in found if run.settings is not None and run.name not in schedules]
        findings = _looked_for(args, wanted, client.get_user_namespace() or args.namespace)
        if args.check:
            _report(args, wanted, plan, gone, findings=findings)
            return exit_code(findings)
        for finding in findings:
            if finding.status == "warning":
                print(f"warning: {finding.found}", file=sys.stderr)
        refuse(findings)
        ids = {}
        for change in plan:
            item, _ = wanted[change.name]
            # Also where nothing is to be done: it asks again what stands there now.
            ids[change.name] = make_so(client, host, item)
            if not args.json:
                print(_line(_DONE[change.action], change, item), flush=True)
        if args.prune:
            with translated(host):
                for run in gone:
                    delete(client, run.id)
        _report(args, wanted, plan, gone, ids=ids)
    return 0


def _list(args: argparse.Namespace) -> int:
    """A line for every schedule; without the file, for what the server has."""
    from plmsae.cluster.connection import address, connect, translated
    from plmsae.cluster.recurring import listed
    from plmsae.cluster.schedule_status import statuses
    from plmsae.cluster.schedules import read_schedules
    from plmsae.stages.components import EXAMPLE_IMAGE

    host = address(args.host)
    schedules = read_schedules(args.file) if args.file.is_file() or args.file != Path(FILE) else None
    known = image_of(args) is not None
    packages = {name for name, schedule in (schedules or {}).items() if known or schedule.package}
    if not known:
        args.image = EXAMPLE_IMAGE
    wanted = {name: item for name, (item, _) in _wanted(args, schedules or {}, look_up=True).items()}
    with connect(host, args.namespace) as client:
        with translated(host):
            found = listed(client)
        lines = statuses(client, host, schedules, wanted, found, packages=packages)
    if args.json:
        print(json.dumps({"host": host, "schedules": [line.record() for line in lines]}, sort_keys=True))
        return 0
    header = ("NAME", "PIPELINE", "TIMES", "ENABLED", "LAST RUN", "NEXT RUN", "DRIFT")
    rows = [header]
    for line in lines:
        enabled = "-" if line.enabled is None else "yes" if line.enabled else "no"
        drift = "-" if line.drift is None else ", ".join(line.drift) or "none"
        rows.append((line.name, line.pipeline, line.times, enabled, line.last_run or "-", line.next_run or "-", drift))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if set(wanted) - packages:
        print("packages were not compared: that takes --image", file=sys.stderr)
    return 0


def _delete(args: argparse.Namespace) -> int:
    """Delete the recurring runs of a name that plmsae made; the runs that they started stay."""
    from plmsae.cluster.connection import address, connect, translated
    from plmsae.cluster.recurring import delete, listed
    from plmsae.errors import UserError, did_you_mean

    host = address(args.host)
    with connect(host, args.namespace) as client, translated(host):
        made = [run for run in listed(client) if run.settings is not None]
        found = [run for run in made if run.name == args.name]
        if not found:
            raise UserError(
                f"there is no recurring run '{args.name}' that plmsae schedule made",
                where=host,
                fix=did_you_mean(args.name, {run.name for run in made}) if made else "it made none here",
            )
        for run in found:
            delete(client, run.id)
    if args.json:
        print(json.dumps({"name": args.name, "deleted": [run.id for run in found]}, sort_keys=True))
    else:
        print(f"deleted {args.name}; as long as the file names it, the next apply makes it again")
    return 0


def _wanted(
    args: argparse.Namespace, schedules: dict[str, Schedule], *, look_up: bool
) -> dict[str, tuple[Wanted, ParamsFile]]:
    """Name -> what is asked for, with its parameters; every pipeline is compiled once."""
    from plmsae.cluster.package import read_package
    from plmsae.cluster.ranks import on_gpu, ranks
    from plmsae.cluster.recurring import Wanted
    from plmsae.cluster.submit import run_arguments
    from plmsae.errors import PlmsaeError
    from plmsae.params import ParamsFile

    packages: dict[tuple[Any, ...], Package] = {}
    found = {}
    for name, schedule in schedules.items():
        try:
            params = ParamsFile(args.params, schedule.overrides)
            sizes = tuple(sorted(ranks(params).items()))
            key = (schedule.pipeline, schedule.package, sizes, tuple(on_gpu(params)))
            if key not in packages:
                packages[key] = (
                    read_package(Path(schedule.package))
                    if schedule.package
                    else compiled(args, str(schedule.pipeline), params, look_up=look_up)
                )
            arguments = run_arguments(packages[key], params, schedule.overrides)
        except PlmsaeError as error:
            where = f"{args.file}, schedule '{name}'"
            raise type(error)(
                error.problem, where=f"{where}; {error.where}" if error.where else where, fix=error.fix
            ) from error
        found[name] = (Wanted(name, schedule, packages[key], arguments), params)
    return found


def _looked_for(
    args: argparse.Namespace, wanted: dict[str, tuple[Wanted, ParamsFile]], namespace: str | None
) -> list[Finding]:
    """What the runs need, each thing once."""
    from plmsae.cluster.preflight import preflight

    found: dict[Finding, None] = {}
    for name, (item, params) in wanted.items():
        for finding in preflight(
            item.package,
            params,
            item.arguments,
            namespace=namespace,
            service_account=item.schedule.service_account,
            skip=set(args.skip),
        ):
            named = finding.status == "failed" and finding.check in ("data", "registry")
            found[replace(finding, found=f"{name}: {finding.found}") if named else finding] = None
    return list(found)


def _report(
    args: argparse.Namespace,
    wanted: dict[str, tuple[Wanted, ParamsFile]],
    plan: list[Change],
    gone: list[Recurring],
    *,
    findings: list[Finding] | None = None,
    ids: dict[str, str] | None = None,
) -> None:
    """What was done, or with `findings` what would be."""
    from plmsae.cluster.finding import exit_code

    checked = findings is not None
    if args.json:
        record: dict[str, Any] = {
            "schedules": [
                {
                    **asdict(change),
                    "times": wanted[change.name][0].schedule.shown,
                    "pipeline": wanted[change.name][0].package.version,
                    "recurring_run_id": (ids or {}).get(change.name),
                }
                for change in plan
            ],
            "pruned" if args.prune else "not_in_the_file": sorted(run.name for run in gone),
        }
        if findings is not None:
            record |= {"ok": exit_code(findings) == 0, "checks": [asdict(item) for item in findings]}
        print(json.dumps(record, sort_keys=True))
        return
    for finding in findings or []:
        print(f"{finding.status:<9}  {finding.check:<8}  {finding.found}")
        for label, text in (("where", finding.where), ("fix", finding.fix)):
            if text and finding.status in ("warning", "failed"):
                print(f"{'':<21}  {label}: {text}")
    if checked:
        for change in plan:
            print(_line(change.action, change, wanted[change.name][0]))
    for run in gone:
        done = ("delete" if checked else "deleted") if args.prune else "left"
        print(f"{done:<9}  {run.name}  not in the file" + ("" if args.prune else "; --prune deletes it"))
    if findings is not None:
        failed = exit_code(findings) != 0
        print("nothing was changed" + (", and apply would change nothing either" if failed else ""))


def _line(action: str, change: Change, item: Wanted) -> str:
    why = f"  ({', '.join(change.why)})" if change.why else ""
    off = "" if item.schedule.enabled else "  disabled"
    return f"{action:<9}  {change.name}  {item.schedule.shown}  {item.package.version}{off}{why}"
