"""Stage `promote`: the registered version becomes champion if it passes the gates."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from plmsae.registry.gates import Gates
from plmsae.stages.spec import Input, Resources, Stage, StageContext, StageResult


class PromoteParams(Gates):
    """Parameters of `promote`: the gates, and what a refusal does."""

    on_refusal: Literal["record", "fail"] = Field(
        default="record",
        description="A version that misses a gate: `record` the reasons and go on, or `fail` with exit code 4.",
    )

    def gates(self) -> Gates:
        """The gates alone: what a decision depends on."""
        return Gates(**{name: getattr(self, name) for name in Gates.model_fields})


STAGE = Stage(
    id="promote",
    summary="Make the registered version the champion if it passes the gates",
    params=PromoteParams,
    inputs=(Input("registration", "registration", "register"),),
    kind="promotion",
    run="plmsae.stages.promote:run",
    code=("artifacts", "registry"),
    resources=Resources(cpu=1, memory_gib=2, retry="io"),
    side_effects=True,
)


def run(context: StageContext) -> StageResult:
    """Promote and write `promotion.json`, the decision with every number.

    Raises:
        GateError: A gate is missed and `on_refusal` is `fail`; every alias is as it was.
        TryAgainError: The registry cannot be reached.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.registry.json_files import read_json
    from plmsae.registry.promote import promote

    params: PromoteParams = context.params
    registration = read_json(context.inputs["registration"] / "registration.json")
    decision = promote(registration["name"], registration["version"], params.gates(), context.root)
    if not decision.promoted and params.on_refusal == "fail":
        raise decision.error()
    write_text(context.output / "promotion.json", json.dumps(decision.record(), indent=1, sort_keys=True) + "\n")
    verdict = "is champion" if decision.promoted else "was not promoted"
    reasons = "".join(f"\n- {reason}" for reason in decision.reasons)
    return StageResult(
        metrics={"promoted": int(decision.promoted), "num_checks": len(decision.checks)},
        summary=f"`models:/{decision.name}/{decision.version}` {verdict}:\n{reasons}",
    )
