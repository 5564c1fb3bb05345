"""`plmsae run STAGE`: run one stage of the pipeline with the parameters of `params.yaml`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plmsae.stages.spec import Stage, StageResult

SUMMARY = "run one stage of the pipeline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument("stage", help="stage id, e.g. train_sae or evaluate@concepts")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameter file (params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a parameter")
    parser.add_argument(
        "--input", action="append", default=[], metavar="PORT=FOLDER", help="read an input from elsewhere"
    )
    parser.add_argument("--without", action="append", default=[], metavar="PORT", help="leave out an optional input")
    parser.add_argument("--output", type=Path, help="output folder (outputs/STAGE)")
    parser.add_argument("--track", action="store_true", help="log it to MLflow, its page as well, also where it is not")
    parser.add_argument(
        "--executor-input", metavar="JSON", help="run as a Kubeflow task: parameters, inputs and outputs are in JSON"
    )


def main(args: argparse.Namespace) -> int:
    """Run the stage; prints its summary, or with --json its metrics."""
    from plmsae.errors import UserError
    from plmsae.params import ParamsFile
    from plmsae.stages import catalog
    from plmsae.stages.execute import execute

    stage = catalog.stage(args.stage)
    if args.executor_input is not None:
        return _run_task(args, stage)
    file = ParamsFile(args.params, args.set)
    file.check_sections(catalog.sections())
    params = catalog.load_params(file, stage)
    inputs: dict[str, Path] = {}
    for item in args.input:
        port, separator, folder = item.partition("=")
        if not separator:
            raise UserError(f"--input '{item}' is not of the form port=folder", fix="--input activations=FOLDER")
        inputs[port] = Path(folder)
    stage = replace(stage, tracked=stage.tracked or args.track)
    result = execute(stage, params, root=Path.cwd(), inputs=inputs, without=args.without, output=args.output)
    _print(args, stage, result, args.output or stage.output)
    return 0


def _run_task(args: argparse.Namespace, stage: Stage) -> int:
    from plmsae.cluster.launch import TrainJobLauncher
    from plmsae.errors import UserError
    from plmsae.stages.executor_input import run_task

    if args.set or args.input or args.without or args.output or args.track:
        raise UserError("--executor-input holds parameters, inputs and outputs", fix="leave the other options out")
    result, output = run_task(stage, args.executor_input, root=Path.cwd(), nodes=TrainJobLauncher.from_environment())
    _print(args, stage, result, output)
    return 0


def _print(args: argparse.Namespace, stage: Stage, result: StageResult, output: Path) -> None:
    if args.json:
        print(json.dumps({"stage": stage.id, "output": str(output), "metrics": dict(result.metrics)}, sort_keys=True))
    else:
        print(f"{result.summary.strip()}\n-> {output}")
