"""Promotion: a version that passes the gates becomes champion, the old champion becomes `previous`.

Two promotions of a name never overlap (`claim.py`), so each is decided against the champion that it replaces. Each is
on record: the decision with every number as the version's tag `promotion`, and when, why and on what numbers as the
name's tag `promotion.<number>` (`audit.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plmsae.errors import GateError
from plmsae.params import canonical_json, params_sha256
from plmsae.registry import audit
from plmsae.registry.claim import Claim, claimed
from plmsae.registry.connection import connect
from plmsae.registry.gates import Check, Gates, apply_gates
from plmsae.registry.later import all_metrics, incomparable
from plmsae.registry.versions import (
    CHAMPION,
    DRIFT_TAG,
    PREVIOUS,
    REEVALUATION,
    ROLLBACK_TAG,
    Registered,
    aliases_of,
    get_version,
    resolve,
)

EVALUATION_TAG = "evaluation_sha256"
DECISION_TAG = "promotion"


@dataclass(frozen=True)
class Decision:
    """The outcome of a promotion.

    Attributes:
        name: Registered name.
        version: The version that was asked for.
        promoted: Whether it is champion now.
        compared_with: Version of the champion that it was compared with, or None.
        reasons: Why it was refused, or what it was held against.
        checks: Every gate with its numbers.
        gates_sha256: Names the gates that were applied.
    """

    name: str
    version: int
    promoted: bool
    compared_with: int | None
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    gates_sha256: str

    def record(self) -> dict[str, Any]:
        """JSON form; equal decisions give equal records."""
        return {**asdict(self), "reasons": list(self.reasons), "checks": [check.record() for check in self.checks]}

    def error(self) -> GateError:
        """The refusal as an error (exit code 4)."""
        return GateError(
            f"'{self.name}' version {self.version} was not promoted: {'; '.join(self.reasons)}",
            where="section 'promote' of params.yaml",
            fix="train a better SAE, or change the gates there and say why",
        )


def promote(
    name: str, version: int, gates: Gates, root: Path | None = None, *, again: bool = False, reason: str = ""
) -> Decision:
    """Promote a version if it passes the gates; a refusal leaves every alias as it was.

    Repeating a promotion changes nothing and gives the same decision, also after a kill in the middle: the decision
    is recorded on the version before the aliases move, `previous` before `champion`. A promotion of the same name by
    another process is waited for.

    Args:
        name: Registered name.
        version: Version number.
        gates: What it must reach.
        root: The working folder.
        again: Promote it also if it was rolled back from. A person may ask for that; a pipeline that comes by the
            same version once more must not undo what a person decided.
        reason: Why now, for the record.

    Returns:
        The decision, also recorded as the version's tag `promotion` and as the name's tag `promotion.<number>`.

    Raises:
        UserError: Unknown name or version, a gate on a metric that the version does not have, or a reason that is too
            long.
        DataError: A record of an earlier promotion was edited.
        TryAgainError: The registry cannot be reached, or another process works on this name for minutes.
    """
    with connect(root) as client:
        resolve(client, f"models:/{name}/{version}")
        with claimed(client, name, "a promotion") as claim:
            return _promote(claim, version, gates, again, reason)


def _promote(claim: Claim, version: int, gates: Gates, again: bool, reason: str) -> Decision:
    client, name = claim.client, claim.name
    candidate = get_version(client, name, version)
    incumbent = aliases_of(client, name).get(CHAMPION)
    known = _recorded(candidate, gates) if incumbent == version else None
    if known is not None:
        _finish(claim, version)
        return known
    champion = get_version(client, name, incumbent) if incumbent not in (None, version) else None
    decision = decide(candidate, champion, gates)
    taken_down = incumbent != version and ROLLBACK_TAG in candidate.tags
    if taken_down and not again:
        decision = replace(decision, promoted=False, reasons=(_taken_down(candidate),))
    moves = decision.promoted and incumbent != version
    number, record = _entry(claim, decision, incumbent if moves else None, reason)
    audit.write(client, name, audit.PROMOTION, number, record)
    claim.check()
    client.set_model_version_tag(name, str(version), DECISION_TAG, canonical_json(decision.record()))
    if moves:
        if taken_down:
            client.delete_model_version_tag(name, str(version), ROLLBACK_TAG)
        if incumbent is not None:
            client.set_registered_model_alias(name, PREVIOUS, str(incumbent))
        claim.check()
        client.set_registered_model_alias(name, CHAMPION, str(version))
    audit.write(client, name, audit.PROMOTION, number, {**record, "done": True})
    return decision


def _entry(claim: Claim, decision: Decision, from_version: int | None, reason: str) -> tuple[int, dict[str, Any]]:
    """Number and record of a decision: that of the attempt which was cut off, of an equal refusal, or a new one."""
    new = audit.promotion(
        decision.version, from_version, decision.promoted, reason, decision.gates_sha256, decision.checks
    )
    history = _history(claim)
    for number, record in reversed(history.items()):
        if record.get("version") == decision.version:
            if audit.same(record, new) and (not record.get("done") or not decision.promoted):
                return number, record
            break
    return max(history, default=0) + 1, new


def _finish(claim: Claim, version: int) -> None:
    """Close the record of a promotion that was killed when both aliases had moved."""
    for number, record in reversed(_history(claim).items()):
        if record.get("version") == version:
            if record.get("promoted") and not record.get("done"):
                audit.write(claim.client, claim.name, audit.PROMOTION, number, {**record, "done": True})
            return


def _history(claim: Claim) -> dict[int, dict[str, Any]]:
    return audit.records(claim.client.get_registered_model(claim.name).tags, audit.PROMOTION, claim.name)


def decide(candidate: Registered, champion: Registered | None, gates: Gates) -> Decision:
    """Apply the gates; changes nothing.

    Numbers are compared only where both versions were evaluated on the same data with the same settings (the tag
    `evaluation_sha256`; of an evaluation that came later, the records of both); otherwise `gates.other_evaluation` says
    what to do.

    Raises:
        DataError: A record of a re-evaluation was edited.
    """
    comparable = champion is not None and champion.tags.get(EVALUATION_TAG) == candidate.tags.get(EVALUATION_TAG)
    apart = incomparable(candidate, champion, gates) if champion and comparable else {}
    theirs = (
        {name: value for name, value in all_metrics(champion).items() if name.partition(".")[0] not in apart}
        if champion and comparable
        else None
    )
    checks = apply_gates(gates, all_metrics(candidate), theirs)
    reasons = [check.text() for check in checks if not check.passed]
    if candidate.tags.get(DRIFT_TAG) == "true":
        reasons.append("its last re-evaluation found that it has drifted (its tags 'reevaluation.<number>' say how)")
    if gates.other_evaluation == "refuse":
        reasons += apart.values()
    if champion is not None and not comparable and gates.other_evaluation == "refuse":
        reasons.append(
            f"the champion (version {champion.version}) was {_other_evaluation(candidate, champion)}, so the two "
            "cannot be compared (promote.other_evaluation: accept promotes on the limits alone)"
        )
    promoted = not reasons
    return Decision(
        name=candidate.name,
        version=candidate.version,
        promoted=promoted,
        compared_with=champion.version if champion and comparable else None,
        reasons=tuple(reasons or [check.text() for check in checks]),
        checks=checks,
        gates_sha256=params_sha256(gates),
    )


def _other_evaluation(candidate: Registered, champion: Registered) -> str:
    """What sets the champion's evaluation apart, as far as its metrics say."""
    ours, theirs = (
        {name.partition(".")[0] for name in version.metrics} - {REEVALUATION} for version in (candidate, champion)
    )
    if ours - theirs:
        return f"registered without the evaluation {', '.join(sorted(ours - theirs))}"
    if theirs - ours:
        return f"registered with the evaluation {', '.join(sorted(theirs - ours))} as well"
    return "evaluated on other data or settings"


def _taken_down(version: Registered) -> str:
    record = json.loads(version.tags[ROLLBACK_TAG])
    why = f": {record['reason']}" if record["reason"] else ""
    return (
        f"it was rolled back at {record['at']}{why} "
        f"(to make it champion again: plmsae promote {version.name} {version.version})"
    )


def _recorded(version: Registered, gates: Gates) -> Decision | None:
    """The decision that made a version champion by these gates; None if it became so by others or by other means."""
    text = version.tags.get(DECISION_TAG)
    data = json.loads(text) if text else {}
    if not data.get("promoted") or data["gates_sha256"] != params_sha256(gates):
        return None
    return Decision(
        name=data["name"],
        version=data["version"],
        promoted=True,
        compared_with=data["compared_with"],
        reasons=tuple(data["reasons"]),
        checks=tuple(Check(**check) for check in data["checks"]),
        gates_sha256=data["gates_sha256"],
    )
