"""A registered SAE once more on the newest data, as far as something under its numbers has changed; for every week."""

from kfp import dsl

from components.changes.component import changes
from components.reevaluate.component import reevaluate as evaluate_again
from components.report_outcome.component import report_outcome
from components.verdict.component import verdict
from pipelines.settings import configure, configure_exit, defaults
from plmsae.stages.reevaluation import DRIFTED, EVALUATE

DEFAULT = defaults("reevaluate")


@dsl.pipeline(
    name="plmsae-reevaluate",
    display_name="plmsae: evaluate a registered sparse autoencoder again",
    description="Registry -> SAE; newest proteins -> what has changed -> stale evaluations -> fine, or drifted.",
)
def reevaluate(
    source: str,
    model: str = DEFAULT["model"],
    reevaluate_params: str = DEFAULT["reevaluate_params"],
) -> None:
    """Evaluate a version again where something has changed; no alias is moved.

    A run ends as succeeded if the version is fine, and fails if it has drifted or something went wrong.

    Args:
        source: Newest proteins as s3://BUCKET/KEY or https://HOST/PATH; asked for their newest bytes each time.
        model: Registered SAE, models:/NAME@ALIAS or models:/NAME/VERSION; empty takes the only champion.
        reevaluate_params: Other parameters of the section, one JSON object (docs/reference/stages.md); its `stages`
            holds the sections of all stages that it may run.
    """
    with dsl.ExitHandler(configure_exit(report_outcome(reevaluated=model), tells=True)):
        found = configure(changes(model=model, source=source, params=reevaluate_params), "changes")
        version, action = found.outputs["uri"], found.outputs["action"]
        with dsl.If(action == EVALUATE, name="stale"):
            done = configure(evaluate_again(model=version, source=source, params=reevaluate_params), "reevaluate")
            configure(verdict(model=version), "verdict").after(done)
        with dsl.If(action == DRIFTED, name="drifted-before"):
            configure(verdict(model=version), "verdict")
