"""Rollback: champion and `previous` change places, with a record of what, when and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plmsae.errors import UserError
from plmsae.params import canonical_json
from plmsae.registry import audit
from plmsae.registry.claim import Claim, claimed
from plmsae.registry.connection import connect
from plmsae.registry.versions import CHAMPION, PREVIOUS, ROLLBACK_TAG, aliases_of_known


@dataclass(frozen=True)
class Rollback:
    """One rollback.

    Attributes:
        name: Registered name.
        from_version: Champion before, `previous` after.
        to_version: `previous` before, champion after.
        reason: Why, in the words of whoever did it.
        at: When it was begun, UTC, ISO 8601.
        done: False from the moment it is recorded until both aliases have moved.
    """

    name: str
    from_version: int
    to_version: int
    reason: str
    at: str
    done: bool

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def rollback(name: str, reason: str = "", root: Path | None = None) -> Rollback:
    """Make the previous champion champion again; the two change places, so that a second rollback undoes the first.

    The record is written before an alias moves, and `champion` moves before `previous`: a kill at any instant leaves a
    champion that passed its gates, and the next rollback finishes the one that was cut off instead of undoing it.

    Args:
        name: Registered name.
        reason: Why; some 4,000 ASCII characters at most.
        root: The working folder.

    Returns:
        What was done, also recorded: every rollback as the tag `rollback.<number>` of the registered name, and on the
        version that was taken down, until it is champion again, as the tag `rollback`.

    Raises:
        UserError: Unknown name, no champion, nothing to go back to, or a reason that is too long.
        DataError: A record of an earlier rollback was edited.
        TryAgainError: The registry cannot be reached, or another process works on this name for minutes.
    """
    with connect(root) as client:
        aliases_of_known(client, name)
        with claimed(client, name, "a rollback") as claim:
            return _rollback(claim, reason)


def _rollback(claim: Claim, reason: str) -> Rollback:
    client, name = claim.client, claim.name
    aliases = aliases_of_known(client, name)
    history = _history(client.get_registered_model(name).tags, name)
    number = max(history, default=0)
    plan = history.get(number)
    if plan is None or not _cut_off(plan, aliases):
        plan, number = _plan(name, aliases, reason), number + 1
        audit.write(client, name, audit.ROLLBACK, number, plan.record())
    claim.check()
    if aliases[CHAMPION] != plan.to_version:
        client.set_registered_model_alias(name, CHAMPION, str(plan.to_version))
    if aliases.get(PREVIOUS) != plan.from_version:
        client.set_registered_model_alias(name, PREVIOUS, str(plan.from_version))
    done = Rollback(**{**plan.record(), "done": True})
    client.set_model_version_tag(name, str(done.from_version), ROLLBACK_TAG, canonical_json(done.record()))
    if ROLLBACK_TAG in client.get_model_version(name, str(done.to_version)).tags:
        client.delete_model_version_tag(name, str(done.to_version), ROLLBACK_TAG)
    audit.write(client, name, audit.ROLLBACK, number, done.record())
    return done


def _plan(name: str, aliases: Mapping[str, int], reason: str) -> Rollback:
    champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if champion is None:
        raise UserError(
            f"'{name}' has no champion to roll back from", fix=f"promote a version: plmsae promote {name} VERSION"
        )
    if previous is None:
        raise UserError(
            f"'{name}' has no previous champion to go back to; version {champion} is its first",
            fix=f"promote another version: plmsae promote {name} VERSION",
        )
    if previous == champion:
        raise UserError(
            f"'{name}' has no previous champion to go back to: a promotion that would have replaced version {champion} "
            "was cut off",
            fix=f"finish it, then roll back: plmsae promote {name} VERSION",
        )
    return Rollback(name, champion, previous, reason, audit.now(), done=False)


def _cut_off(plan: Rollback, aliases: Mapping[str, int]) -> bool:
    """Whether this is a rollback that was killed after it had moved `champion`, and nothing has happened since."""
    if plan.done or aliases.get(CHAMPION) != plan.to_version:
        return False
    return aliases.get(PREVIOUS) in (plan.from_version, plan.to_version)


def _history(tags: Mapping[str, str], name: str) -> dict[int, Rollback]:
    """Number -> rollback of a registered name, from its tags."""
    found: dict[int, Rollback] = {}
    for number, record in audit.records(tags, audit.ROLLBACK, name).items():
        try:
            found[number] = Rollback(**record)
        except TypeError as error:
            raise audit.edited(f"{audit.ROLLBACK}.{number}", name, audit.ROLLBACK) from error
    return found
