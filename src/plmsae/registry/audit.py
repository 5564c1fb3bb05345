"""The record of what was decided about a registered name: tags `<kind>.<number>` of the name, numbered from 1.

Kinds are `promotion`, `rollback` and `deletion`. The records stand on the name, not on a version, so that they outlive
a version that is deleted. They are written under the claim on the name (`claim.py`), so that no number is given twice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json
from plmsae.registry.gates import Check

MAX_RECORD = 5000  # characters: the width of MLflow's column for the tags of a registered model
PROMOTION, ROLLBACK, DELETION = "promotion", "rollback", "deletion"
KINDS = (PROMOTION, ROLLBACK, DELETION)


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def records(tags: Mapping[str, str], kind: str, name: str) -> dict[int, dict[str, Any]]:
    """Number -> record of one kind, in order, from the tags of a registered name.

    Raises:
        DataError: Somebody edited one.
    """
    found: dict[int, dict[str, Any]] = {}
    for key, text in tags.items():
        if match := re.fullmatch(rf"{kind}\.([0-9]+)", key):
            try:
                record = json.loads(text)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise edited(key, name, kind)
            found[int(match[1])] = record
    return dict(sorted(found.items()))


def edited(key: str, name: str, kind: str) -> DataError:
    """The error about a record that is none."""
    return DataError(
        f"the tag '{key}' of '{name}' is no record of a {kind}",
        where="tags of the registered model in MLflow",
        fix="somebody edited it: remove the tag there, then do it again",
    )


def write(client: Any, name: str, kind: str, number: int, record: Mapping[str, Any]) -> None:
    """Write a record.

    Raises:
        UserError: The reason in it is too long.
    """
    if len(text := canonical_json(dict(record))) > MAX_RECORD:
        raise UserError(f"the reason is too long: {len(str(record['reason'])):,} characters", fix="shorten --reason")
    client.set_registered_model_tag(name, f"{kind}.{number}", text)


def promotion(
    version: int, from_version: int | None, promoted: bool, reason: str, gates_sha256: str, checks: Sequence[Check]
) -> dict[str, Any]:
    """The record of a decision: when, why, by which run, and the numbers that it was made on.

    The numbers are `[metric, rule, value, limit, passed]`, those that failed first. Where they do not fit into a tag,
    `numbers_left_out` counts the rest; all of them are in the version's tag `promotion`.
    """
    numbers = [
        [check.metric, check.rule, check.value, check.limit, check.passed]
        for check in sorted(checks, key=lambda check: check.passed)
    ]
    record: dict[str, Any] = {
        "version": version,
        "from_version": from_version,
        "promoted": promoted,
        "at": now(),
        "reason": reason,
        "kfp_run_id": os.environ.get("KFP_RUN_ID", "").strip(),
        "gates_sha256": gates_sha256,
        "numbers": numbers,
        "numbers_left_out": 0,
        "done": False,
    }
    while numbers and len(canonical_json(record)) > MAX_RECORD:
        numbers.pop()
        record["numbers_left_out"] += 1
    return record


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two promotions decided the same on the same numbers; when, why and where may differ."""
    keys = set(one) | set(other)
    apart = {"at", "reason", "kfp_run_id", "done", "numbers_left_out", "numbers"}
    if any(one.get(key) != other.get(key) for key in keys - apart):
        return False
    return all(mine == theirs for mine, theirs in zip(one.get("numbers", ()), other.get("numbers", ())))
