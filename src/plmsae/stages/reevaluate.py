"""Stage `reevaluate`: evaluate a registered SAE again, as far as something has changed.

It succeeds also where the version has drifted: Kubeflow keeps no outputs of a task that failed. `verdict` ends the run.
"""

from __future__ import annotations

import json

from plmsae.stages.reevaluation_params import CODE, REPEATS, ReevaluateParams
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult, Value

STAGE = Stage(
    id="reevaluate",
    summary="Evaluate a registered SAE again where something has changed, and hold it against what it was",
    params=ReevaluateParams,
    repeats=REPEATS,
    pipeline="registered",
    kind="report",
    run="plmsae.stages.reevaluate:run",
    code=CODE,
    knobs=("model", "source"),
    values=(Value("verdict", str, "`fine` or `drifted`, of all that was compared since the version was registered."),),
    report="report.html",
    resources=Resources(cpu=4, memory_gib=16, timeout_hours=24),
    resumable=True,
    side_effects=True,
)


def run(context: StageContext) -> StageResult:
    """Write the version's newest `report.html`, `history.csv` and `history.png`, and `reevaluation.json`, the outcome.

    Raises:
        UserError: A wrong parameter, or an unknown name, alias or version.
        DataError: Damaged data, or a record that somebody edited.
        TryAgainError: The registry or another server cannot be reached.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.registry.history import write_nothing
    from plmsae.registry.reevaluation import download_report
    from plmsae.stages.reevaluation import reevaluate

    params: ReevaluateParams = context.params
    found = reevaluate(params.model, params, context.root, state=context.checkpoints)
    if found.number:
        download_report(found.name, found.version, found.number, context.output, context.root)
    else:
        write_nothing(context.output, found.uri)
    write_text(context.output / "reevaluation.json", json.dumps(found.record(), indent=1, sort_keys=True) + "\n")
    numbers = "".join(f"\n- {each.text()}" for each in found.drift)
    evaluated = ", ".join(f"`{name}`" for name in found.causes) or "nothing"
    return StageResult(
        metrics={
            "num_evaluated": len(found.causes),
            "num_drifted": sum(each.drifted for each in found.drift),
            **{each.metric.replace(".", "_"): each.now for each in found.drift},
        },
        summary=f"`{found.uri}` is {found.verdict}; evaluated again: {evaluated}.\n{numbers}",
        values={"verdict": found.verdict},
    )
