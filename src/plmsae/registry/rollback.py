"""Rollback: champion and `previous` change places, with a record of what, when and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json
from plmsae.registry.connection import connect
from plmsae.registry.versions import CHAMPION, PREVIOUS, ROLLBACK_TAG, aliases_of_known

MAX_RECORD = 5000  # characters: the width of MLflow's column for the tags of a registered model
_RECORD = re.compile(r"rollback\.([0-9]+)")


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
        TryAgainError: The registry cannot be reached.
    """
    with connect(root) as client:
        aliases = aliases_of_known(client, name)
        history = _history(client.get_registered_model(name).tags, name)
        number = max(history, default=0)
        plan = history.get(number)
        if plan is None or not _cut_off(plan, aliases):
            plan, number = _plan(name, aliases, reason), number + 1
            if len(text := canonical_json(plan.record())) > MAX_RECORD:
                raise UserError(f"the reason is too long: {len(reason):,} characters", fix="shorten --reason")
            client.set_registered_model_tag(name, f"rollback.{number}", text)
        if aliases[CHAMPION] != plan.to_version:
            client.set_registered_model_alias(name, CHAMPION, str(plan.to_version))
        if aliases.get(PREVIOUS) != plan.from_version:
            client.set_registered_model_alias(name, PREVIOUS, str(plan.from_version))
        done = Rollback(**{**plan.record(), "done": True})
        record = canonical_json(done.record())
        client.set_model_version_tag(name, str(done.from_version), ROLLBACK_TAG, record)
        if ROLLBACK_TAG in client.get_model_version(name, str(done.to_version)).tags:
            client.delete_model_version_tag(name, str(done.to_version), ROLLBACK_TAG)
        client.set_registered_model_tag(name, f"rollback.{number}", record)
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
    return Rollback(name, champion, previous, reason, datetime.now(UTC).isoformat(timespec="seconds"), done=False)


def _cut_off(plan: Rollback, aliases: Mapping[str, int]) -> bool:
    """Whether this is a rollback that was killed after it had moved `champion`, and nothing has happened since."""
    if plan.done or aliases.get(CHAMPION) != plan.to_version:
        return False
    return aliases.get(PREVIOUS) in (plan.from_version, plan.to_version)


def _history(tags: Mapping[str, str], name: str) -> dict[int, Rollback]:
    """Number -> rollback of a registered name, from its tags."""
    found: dict[int, Rollback] = {}
    for key, text in tags.items():
        if match := _RECORD.fullmatch(key):
            try:
                found[int(match[1])] = Rollback(**json.loads(text))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"the tag '{key}' of '{name}' is no record of a rollback",
                    where="tags of the registered model in MLflow",
                    fix="somebody edited it: remove the tag there, then roll back again",
                ) from error
    return found
