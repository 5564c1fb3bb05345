"""SIGTERM and Ctrl-C during a training: keep what was done, say at which step, end with "try again".

A signal that comes in the middle of a step waits for its end, since half a step cannot be kept. Everything else that
takes long changes nothing before it is through: waiting for rows, measuring on held-out rows, looking for rows to start
dead latents at. There a signal is served at once. Either way the state is that of a whole step, and what was cut off
after it is done first when the training goes on.

The state is kept before the exception is raised: on its way out it may have to wait for threads that read.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch

from plmsae.errors import TryAgainError
from plmsae.saes.group import SOLO, Group

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopError(BaseException):
    """A training is to end here; a BaseException, so that nobody who retries a failed read takes it for one."""


class Interruption:
    """Handlers of SIGTERM and SIGINT, as a context manager around a training; the ones before come back at its end.

    A `StopError` that arrives at the end becomes a `TryAgainError`, or `KeyboardInterrupt` for SIGINT. A second SIGINT
    is a `KeyboardInterrupt` where it comes. Signals are for the main thread of a process: in another one nothing is
    installed, and nothing changes.

    Args:
        group: The processes that train together. With more than one, sections are not cut, since the others would wait
            for this one; all end after the same step.

    Attributes:
        keep: Writes what was done to disk; called before the training ends.
        kept: What is on disk, in words.
    """

    def __init__(self, group: Group = SOLO) -> None:
        self.group = group
        self.keep: Callable[[], None] = lambda: None
        self.kept = "no step was done yet"
        self._received: int | None = None
        self._exposed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._exposed = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, StopError):
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt from None
            name = "SIGTERM" if self._received is None else signal.Signals(self._received).name
            raise TryAgainError(
                f"the training was stopped by {name}: {self.kept}", fix="run the same again: it goes on from there"
            ) from None

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self._received is not None

    def stop(self) -> None:
        """End here if a signal came, to any of the processes.

        Raises:
            StopError: One came.
        """
        self._exposed = False
        if bool(self.group.max_(torch.tensor(float(self.requested)))):
            self.keep()
            raise StopError

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around what may be cut anywhere.

        Raises:
            StopError: A signal came, now or before.
        """
        if self.group.size > 1:
            yield
            return
        self.stop()
        try:
            self._exposed = True
            if self.requested:  # between the two lines above
                self.stop()
            yield
        finally:
            self._exposed = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        if self._exposed:
            self.stop()
