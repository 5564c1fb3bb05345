"""Errors that a user can act on. Each says what is wrong, where, and what to do about it.

The exit codes are part of the command line's contract (DESIGN: 0 ok, 2 user error, 3 invalid data, 4 gate
failed, 75 try again); anything that is not a `PlmsaeError` is a bug in plmsae and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlmsaeError(Exception):
    """Base of every error meant for a user.

    Args:
        problem: What is wrong, one sentence with the offending value in it.
        where: The file, field, line or accession it was found at.
        fix: What to do about it.
    """

    exit_code = 2

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.problem]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class UserError(PlmsaeError):
    """A wrong parameter, name, path or combination of them (exit 2)."""

    exit_code = 2


class DataError(PlmsaeError):
    """Input data or a stored artifact that is malformed, corrupted or fails its expectations (exit 3)."""

    exit_code = 3


class GateError(PlmsaeError):
    """A quality gate that was not met, e.g. a promotion that was refused (exit 4)."""

    exit_code = 4


class TryAgainError(PlmsaeError):
    """Something outside plmsae is not available at the moment, or another process holds a lock (exit 75)."""

    exit_code = 75


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Text for the `fix` of an unknown name: the closest known name, or all of them.

    Returns:
        For example `did you mean 'train_sae'?` or `known: 'a', 'b'`.
    """
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known: " + ", ".join(f"'{option}'" for option in options)
