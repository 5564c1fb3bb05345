"""Stage `register`: the SAE and its evidence become a version in the registry, and a page to look at."""

from __future__ import annotations

import json
from dataclasses import asdict

from pydantic import Field

from plmsae.params import Params
from plmsae.stages.spec import Input, Resources, Stage, StageContext, StageResult


class RegisterParams(Params):
    """Parameters of `register`."""

    notes: str = Field(default="", max_length=20000, description="Free text (Markdown) for the model card.")
    num_report_concepts: int = Field(default=30, ge=1, le=1000, description="Concepts in the report's table.")


STAGE = Stage(
    id="register",
    summary="Register the SAE with its evidence in MLflow and write the report",
    params=RegisterParams,
    inputs=(
        Input("sequences", "sequences", "ingest"),
        Input("activations", "activations", "extract_activations"),
        Input("sae", "sae", "train_sae"),
        Input("fidelity", "result", "evaluate@fidelity"),
        Input("concepts", "result", "evaluate@concepts"),
        Input("baselines", "result", "evaluate@baselines"),
        Input("amortisation", "result", "evaluate@amortisation"),
    ),
    kind="registration",
    run="plmsae.stages.register:run",
    code=("artifacts", "registry", "saes"),
    report="report.html",
    resources=Resources(cpu=1, memory_gib=4, retry="io"),
    side_effects=True,
)


def run(context: StageContext) -> StageResult:
    """Register and write `registration.json` and `report.html`; repeating it finds the same version.

    Raises:
        TryAgainError: The registry cannot be reached.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.registry.evidence import Evidence
    from plmsae.registry.register import register
    from plmsae.registry.report import write_report
    from plmsae.saes.files import read_config

    params: RegisterParams = context.params
    evidence = Evidence(folders=context.inputs, manifests=context.manifests)
    registration = register(evidence, context.root, params.notes)
    write_text(context.output / "registration.json", json.dumps(asdict(registration), indent=1, sort_keys=True) + "\n")
    config = read_config(evidence.sae_folder)
    write_report(context.output / "report.html", evidence, config, registration.name, params.num_report_concepts)
    uri = f"models:/{registration.name}/{registration.version}"
    return StageResult(
        metrics={"num_metrics": len(evidence.metrics()), "num_evaluations": len(evidence.evaluations)},
        summary=f"Registered as `{uri}` (alias `candidate`) with the numbers of {', '.join(evidence.evaluations)}. "
        "Look at `report.html`; `plmsae models` lists what is registered.",
    )
