"""`plmsae submit`: run a pipeline on Kubeflow."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.commands.compiling import add_compile_arguments, add_skip_argument, compiled

if TYPE_CHECKING:
    from plmsae.cluster.finding import Finding
    from plmsae.cluster.package import Package
    from plmsae.params import ParamsFile

SUMMARY = "run a pipeline on Kubeflow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.description = (
        "Run a pipeline on Kubeflow. The address comes from --host or KFP_HOST, a bearer token only from KFP_TOKEN."
    )
    parser.add_argument("pipeline", help="name of a pipeline, e.g. train")
    parser.add_argument("--host", help="address of Kubeflow Pipelines (KFP_HOST)")
    add_compile_arguments(parser)
    parser.add_argument(
        "--check", action="store_true", help="look for everything that the run needs, and create nothing"
    )
    add_skip_argument(parser)
    parser.add_argument("--no-image-check", action="store_true", help="the same as --skip images")
    parser.add_argument("--package", type=Path, help="submit this compiled pipeline as it is")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    parser.add_argument("--experiment", default="plmsae", help="experiment of the run, created if missing (plmsae)")
    parser.add_argument("--run-name", help="name of the run (made from the pipeline and its parameters)")
    parser.add_argument("--namespace", help="your namespace, on a Kubeflow with several users")
    parser.add_argument("--service-account", help="service account of the pods (the installation's)")
    parser.add_argument("--wait", action="store_true", help="follow the run; exit 3 if it fails")


def main(args: argparse.Namespace) -> int:
    """Check everything, upload, start the run; with --wait, follow it. With --check, stop before the upload."""
    from plmsae.cluster.connection import address, connect
    from plmsae.cluster.finding import refuse
    from plmsae.cluster.follow import follow
    from plmsae.cluster.submit import run_arguments, start
    from plmsae.params import ParamsFile

    if args.check:
        return _check(args)
    host = address(args.host)
    params = ParamsFile(args.params, args.set)
    package = _package(args, params)
    arguments = run_arguments(package, params, args.set)
    with connect(host, args.namespace) as client:
        findings = _looked_for(args, package, params, arguments, client.get_user_namespace() or args.namespace)
        for item in findings:
            if item.status == "warning":
                print(f"warning: {item.found}", file=sys.stderr)
        refuse(findings)
        submission = start(
            client,
            host,
            package,
            arguments,
            experiment=args.experiment,
            run_name=args.run_name,
            service_account=args.service_account,
        )
        if not args.json:
            print(f"pipeline  {submission.version} ({'uploaded' if submission.uploaded else 'was there already'})")
            print(f"run       {submission.run_id}\n{submission.url}", flush=True)
        record = submission.record()
        if args.wait:
            try:
                outcome = follow(client, host, submission.run_id, package.tasks)
            except KeyboardInterrupt:
                print(f"not waiting any more; the run goes on: {submission.url}", file=sys.stderr)
                return 130
            if not outcome.succeeded:
                raise outcome.error(submission.url)
            record["state"] = outcome.state
        if args.json:
            print(json.dumps(record, sort_keys=True))
        elif args.wait:
            print(f"the run ended as {record['state']}")
    return 0


def _check(args: argparse.Namespace) -> int:
    """One line for everything that was looked for; the exit code of the failures."""
    from plmsae.cluster.connection import address, connect
    from plmsae.cluster.finding import Finding, exit_code
    from plmsae.cluster.submit import run_arguments
    from plmsae.errors import PlmsaeError
    from plmsae.params import ParamsFile

    params = ParamsFile(args.params, args.set)
    package = _package(args, params)
    arguments = run_arguments(package, params, args.set)
    namespace = args.namespace
    try:
        host = address(args.host)
        with connect(host, args.namespace) as client:
            namespace = client.get_user_namespace() or namespace
        findings = [Finding("kubeflow", "ok", f"{host} is Kubeflow Pipelines")]
    except PlmsaeError as error:
        findings = [Finding.of("kubeflow", error)]
    findings += _looked_for(args, package, params, arguments, namespace)
    code = exit_code(findings)
    if args.json:
        print(json.dumps({"ok": code == 0, "checks": [asdict(item) for item in findings]}, sort_keys=True))
        return code
    for item in findings:
        print(f"{item.status:<9}  {item.check:<8}  {item.found}")
        if item.status in ("warning", "failed"):
            for name, text in (("where", item.where), ("fix", item.fix)):
                if text:
                    print(f"{'':<21}  {name}: {text}")
    print("nothing was created; a run would start" if code == 0 else "nothing was created, and a run would not start")
    return code


def _looked_for(
    args: argparse.Namespace, package: Package, params: ParamsFile, arguments: dict[str, Any], namespace: str | None
) -> list[Finding]:
    from plmsae.cluster.preflight import preflight

    return preflight(
        package,
        params,
        arguments,
        namespace=namespace,
        service_account=args.service_account,
        skip={*args.skip, *(["images"] if args.no_image_check else [])},
    )


def _package(args: argparse.Namespace, params: ParamsFile) -> Package:
    """The package of the command line: read, or compiled for its images."""
    from plmsae.cluster.package import read_package
    from plmsae.errors import UserError

    if args.package:
        if args.image or args.gpu_image or args.allow_tag or args.placement or args.state_claim:
            raise UserError(
                "--package is compiled already; its images and nodes cannot be changed",
                where="--image, --gpu-image, --allow-tag, --placement, --state-claim",
                fix="leave out --package, or compile another with: plmsae compile",
            )
        package = read_package(args.package)
        if package.name not in (args.pipeline, f"plmsae-{args.pipeline}"):
            raise UserError(
                f"'{args.package}' is pipeline '{package.name}', not '{args.pipeline}'",
                where="--package",
                fix=f"plmsae submit {package.name.removeprefix('plmsae-')} --package {args.package}",
            )
        return package
    return compiled(args, args.pipeline, params, look_up=not args.no_image_check and "images" not in args.skip)
