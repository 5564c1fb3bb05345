"""Stage `verdict`: ends a run of the pipeline `reevaluate` with exit code 4 if the version has drifted."""

from __future__ import annotations

from plmsae.stages.reevaluation_params import REEVALUATE, ReevaluateParams
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult

STAGE = Stage(
    id="verdict",
    summary="Fail if a registered SAE has drifted, and tell the webhook of it",
    params=ReevaluateParams,
    shares=REEVALUATE,
    pipeline="registered",
    kind="report",
    run="plmsae.stages.verdict:run",
    code=("artifacts", "evaluation", "figures.py", "registry", "saes"),
    knobs=("model",),
    resources=Resources(cpu=1, memory_gib=2),
    side_effects=True,
    notifies=True,
)


def run(context: StageContext) -> StageResult:
    """Pass a version that is fine; the webhook of the environment is told once of every re-evaluation that drifted.

    Raises:
        GateError: The version has drifted.
        UserError: Unknown name, alias or version.
        DataError: A record that somebody edited.
        TryAgainError: The registry cannot be reached.
    """
    from plmsae.errors import GateError
    from plmsae.registry.reevaluation import DRIFTED, announce, drifts, note_run, open_version, verdict

    params: ReevaluateParams = context.params
    version = open_version(params.model, context.root)
    drift = drifts(version.records.values())
    uri = version.registered.uri
    if verdict(drift) == DRIFTED:
        announce(version, context.root)
        note_run(version.registered.name, version.registered.version, context.root)
        worse = [each for each in drift if each.drifted]
        raise GateError(
            f"'{uri}' has drifted: {'; '.join(each.text() for each in worse)}",
            where="tags 'reevaluation.<number>' and artifacts 'reevaluation' of the version",
            fix="look at the report; no alias was moved: plmsae promote another version, or plmsae rollback",
        )
    return StageResult(metrics={"num_compared": len(drift)}, summary=f"`{uri}` is fine.")
