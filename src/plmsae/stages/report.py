"""Stage `report`: all that is known of an SAE on one page."""

from __future__ import annotations

from pydantic import Field

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
        Input("activations", "activations", "extract_activations"),
        Input("sae", "sae", "train_sae"),
        Input("fidelity", "result", "evaluate@fidelity"),
        Input("concepts", "result", "evaluate@concepts"),
        Input("baselines", "result", "evaluate@baselines"),
        Input("amortisation", "result", "evaluate@amortisation"),
        Input("probes", "result", "evaluate@probes"),
        Input("patterns", "result", "evaluate@patterns"),
        Input("clustering", "result", "evaluate@clustering"),
        Input("absorption", "result", "evaluate@absorption"),
        Input("controls", "result", "evaluate@controls"),
        Input("layers", "result", "evaluate@layers"),
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
        DataError: A table of an evaluation cannot be read.
    """
    from plmsae.registry.evidence import Evidence
    from plmsae.registry.report import write_report
    from plmsae.registry.versions import registry_name
    from plmsae.saes.files import read_config

    params: ReportParams = context.params
    evidence = Evidence(folders=context.inputs, manifests=context.manifests)
    config = read_config(evidence.sae_folder)
    name = registry_name(config.plm, config.layer, config.hook, config.architecture)
    write_report(context.output / "report.html", evidence, config, name, params.num_report_concepts)
    return StageResult(
        metrics={"num_metrics": len(evidence.metrics()), "num_evaluations": len(evidence.evaluations)},
        summary=f"`report.html` has {', '.join(evidence.evaluations)} of `{name}`.",
    )
