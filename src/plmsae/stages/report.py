"""Stage `report`: all that is known of an SAE on one page."""

from __future__ import annotations

from pydantic import Field

from plmsae.errors import UserError
from plmsae.params import Params
from plmsae.stages.spec import Input, Resources, Stage, StageContext, StageResult


class ReportParams(Params):
    """Parameters of `report`."""

    num_report_concepts: int = Field(default=30, ge=1, le=1000, description="Concepts in the report's table.")


STAGE = Stage(
    id="report",
    summary="Write every evaluation of an SAE into one self-contained page",
    params=ReportParams,
    inputs=(
        Input("sequences", "sequences", "ingest"),
        Input("activations", "activations", "extract_activations", optional=True),
        Input("sae", "sae", "train_sae"),
        Input("fidelity", "result", "evaluate@fidelity", optional=True),
        Input("concepts", "result", "evaluate@concepts", optional=True),
        Input("baselines", "result", "evaluate@baselines", optional=True),
        Input("amortisation", "result", "evaluate@amortisation", optional=True),
        Input("probes", "result", "evaluate@probes", optional=True),
        Input("patterns", "result", "evaluate@patterns", optional=True),
        Input("clustering", "result", "evaluate@clustering", optional=True),
        Input("absorption", "result", "evaluate@absorption", optional=True),
        Input("controls", "result", "evaluate@controls", optional=True),
        Input("layers", "result", "evaluate@layers", optional=True),
        Input("steering", "result", "steer", optional=True),
    ),
    pipeline="evaluate",
    kind="report",
    run="plmsae.stages.report:run",
    code=("artifacts", "registry", "saes"),
    report="report.html",
    resources=Resources(cpu=1, memory_gib=4),
)


def run(context: StageContext) -> StageResult:
    """Write `report.html`.

    Raises:
        UserError: There is nothing to report.
        DataError: A table of an evaluation cannot be read.
    """
    from plmsae.registry.evidence import Evidence
    from plmsae.registry.report import write_report
    from plmsae.registry.versions import registry_name
    from plmsae.saes.files import read_config

    params: ReportParams = context.params
    evidence = Evidence(folders=context.inputs, manifests=context.manifests)
    if not evidence.evaluations:
        raise UserError("there is no evaluation to report", where="report", fix="connect at least one in the pipeline")
    config = read_config(evidence.sae_folder)
    name = registry_name(config.plm, config.layer, config.hook, config.architecture)
    write_report(context.output / "report.html", evidence, config, name, params.num_report_concepts)
    return StageResult(
        metrics={"num_metrics": len(evidence.metrics()), "num_evaluations": len(evidence.evaluations)},
        summary=f"`report.html` has {', '.join(evidence.evaluations)} of `{name}`.",
    )
