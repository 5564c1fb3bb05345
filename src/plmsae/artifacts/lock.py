"""Locks between processes: a file that one of them holds until it is closed, if only by a kill."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from plmsae.errors import TryAgainError


def take(handle: IO[Any], doing: str) -> None:
    """Lock an open file until it is closed.

    Args:
        handle: The file.
        doing: What the holder does, for the message: `running 'train_sae'`.

    Raises:
        TryAgainError: Another process has it locked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TryAgainError(
            f"another process is {doing} here", where=str(handle.name), fix="wait until it has finished"
        ) from error


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file, made if there is none.

    Raises:
        TryAgainError: As `take`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        take(handle, doing)
        yield
