"""Stage `changes`: what has changed under the numbers of a registered SAE; evaluates nothing.

The first task of the pipeline `reevaluate`: the task that evaluates runs only if something is stale.
"""

from __future__ import annotations

import json

from plmsae.stages.reevaluation_params import CODE, REEVALUATE, REPEATS, ReevaluateParams
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult, Value

STAGE = Stage(
    id="changes",
    summary="Say which evaluations of a registered SAE are stale, and why",
    params=ReevaluateParams,
    shares=REEVALUATE,
    repeats=REPEATS,
    pipeline="registered",
    kind="report",
    run="plmsae.stages.changes:run",
    code=CODE,
    knobs=("model", "source"),
    values=(
        Value("uri", str, "The version, as models:/NAME/VERSION."),
        Value(
            "action",
            str,
            "`evaluate` if something is stale; else `drifted` if the version has drifted, and `nothing` if not.",
        ),
    ),
    resources=Resources(cpu=1, memory_gib=8),
    looks_up=True,
)


def run(context: StageContext) -> StageResult:
    """Write `changes.json`: the version, the stale evaluations with their causes, and how its metrics stand.

    Raises:
        UserError: A wrong parameter, or an unknown name, alias or version.
        DataError: Damaged data, or a record that somebody edited.
        TryAgainError: The registry or another server cannot be reached.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.stages.reevaluation import DRIFTED, changes

    params: ReevaluateParams = context.params
    found = changes(params.model, params, context.root, context.checkpoints)
    write_text(context.output / "changes.json", json.dumps(found.record(), indent=1, sort_keys=True) + "\n")
    lines = [
        f"- `{evaluation}` ({cause}): {'; '.join(what)}"
        for evaluation, causes in found.causes.items()
        for cause, what in causes.items()
    ]
    if not lines:
        lines = ["Nothing has changed, nothing is evaluated."]
    if found.action == DRIFTED:
        lines.append("It has drifted, and stays so until a re-evaluation is fine.")
    return StageResult(
        metrics={
            "num_stale": len(found.causes),
            "num_unchanged": len(found.unchanged),
            "num_drifted": sum(each.drifted for each in found.drift),
        },
        summary=f"`{params.model or 'The only champion'}` is `{found.uri}`.\n\n" + "\n".join(lines),
        values={"uri": found.uri, "action": found.action},
    )
