"""Follows a run of a pipeline to its end, one line whenever something changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from plmsae.cluster.connection import translated
from plmsae.errors import DataError, PlmsaeError, TryAgainError

logger = logging.getLogger("plmsae")
FIRST_SECONDS, LONGEST_SECONDS, GROWTH = 1.0, 15.0, 1.5
PATIENCE_SECONDS = 300.0
_GOOD = ("SUCCEEDED", "SKIPPED")
_ENDED = (*_GOOD, "FAILED", "CANCELED", "ERROR")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: KFP's word: SUCCEEDED, SKIPPED, FAILED, CANCELED.
        failures: (task, what it says) of the tasks that failed, by name.
        message: What the run says of itself; empty if nothing.
    """

    state: str
    failures: tuple[tuple[str, str], ...] = ()
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the run did its work."""
        return self.state in _GOOD

    def error(self, url: str) -> PlmsaeError:
        """The error that a failed run is reported as.

        Returns:
            `TryAgainError` for a run that somebody cancelled, else `DataError`: Kubeflow does not hand on the exit
            codes of tasks, so which kind of failure it was stands in the log of the task.
        """
        if self.state == "CANCELED":
            return TryAgainError("the run was cancelled", where=url, fix="submit it again")
        told = "; ".join(f"task '{name}' failed" + (f": {text}" if text else "") for name, text in self.failures)
        return DataError(
            f"the run ended as {self.state}" + (f": {told or self.message}" if told or self.message else ""),
            where=url,
            fix="the log of the task says what to do; the same command again takes finished tasks from the cache",
        )


def follow(
    client: Any,
    host: str,
    run_id: str,
    tasks: Sequence[str],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Wait until a run has ended.

    Args:
        client: From `connect`.
        host: The address, for messages.
        run_id: The run.
        tasks: Names of the tasks to report; what Kubeflow runs beside them (drivers) is left out.
        sleep: Waits so many seconds.
        clock: Seconds that only go up.

    Raises:
        TryAgainError: The server did not answer for five minutes. The run goes on.
        UserError: The server refuses, for example because the token has expired. The run goes on.
    """
    pause, last, heard = FIRST_SECONDS, "", clock()
    while True:
        try:
            with translated(host):
                run = client.get_run(run_id)
            heard = clock()
        except TryAgainError:
            if clock() - heard > PATIENCE_SECONDS:
                raise
        else:
            outcome, line = _read(run, tasks)
            if line != last:
                logger.info("%s", line)
                last, pause = line, FIRST_SECONDS
            if outcome.state in _ENDED:
                return outcome
        sleep(pause)
        pause = min(pause * GROWTH, LONGEST_SECONDS)


def _read(run: Any, tasks: Sequence[str]) -> tuple[Outcome, str]:
    """The run's state now, and the line that reports it."""
    details = getattr(run.run_details, "task_details", None) or []
    # A task that was retried has several entries; the one that started last counts.
    details = sorted(details, key=lambda task: task.start_time.timestamp() if task.start_time else 0.0)
    latest = {task.display_name: task for task in details if task.display_name in tasks}
    states = {name: str(task.state or "PENDING").upper() for name, task in latest.items()}
    failures = tuple(
        (name, _said(latest[name].error)) for name in sorted(latest) if states[name] in ("FAILED", "ERROR")
    )
    outcome = Outcome(str(run.state or "PENDING").upper(), failures, _said(run.error))
    line = f"run state={outcome.state} done={sum(state in _GOOD for state in states.values())} total={len(tasks)}"
    for label, wanted in (("running", ("RUNNING",)), ("failed", ("FAILED", "ERROR"))):
        names = sorted(name for name, state in states.items() if state in wanted)
        if names:
            line += f" {label}={','.join(names)}"
    return outcome, line


def _said(error: Any) -> str:
    return " ".join(str(getattr(error, "message", None) or "").split())[:300]
