"""One line of what was looked for before a run, and what all of them together mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from plmsae.errors import PlmsaeError, TryAgainError, UserError

Status = Literal["ok", "not asked", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        check: What was looked at, e.g. `images`.
        status: `failed` keeps the run from being created.
        found: What was found.
        where: Where.
        fix: What to do about it.
        exit_code: Of a failure.
    """

    check: str
    status: Status
    found: str
    where: str = ""
    fix: str = ""
    exit_code: int = 0

    @classmethod
    def of(cls, check: str, error: PlmsaeError) -> Finding:
        """A failure."""
        return cls(check, "failed", error.problem, error.where or "", error.fix or "", error.exit_code)


def exit_code(findings: Sequence[Finding]) -> int:
    """0, 75 if only waiting can help, else 2."""
    codes = {item.exit_code for item in findings if item.status == "failed"}
    if not codes:
        return 0
    return TryAgainError.exit_code if codes == {TryAgainError.exit_code} else UserError.exit_code


def refuse(findings: Sequence[Finding]) -> None:
    """Raise what failed, all of it in one message.

    Raises:
        UserError: Something is not there or not right.
        TryAgainError: Nothing but services that did not answer.
    """
    failed = [item for item in findings if item.status == "failed"]
    if not failed:
        return
    kind = TryAgainError if exit_code(failed) == TryAgainError.exit_code else UserError
    raise kind(
        "; ".join(item.found for item in failed),
        where="; ".join(dict.fromkeys(item.where for item in failed if item.where)) or None,
        fix="; ".join([*dict.fromkeys(item.fix for item in failed if item.fix), "nothing was created"]),
    )
