"""The log of a TrainJob's first node as it grows, and the end of any other's."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

from plmsae.cluster.trainer_api import Pod
from plmsae.errors import PlmsaeError

logger = logging.getLogger("plmsae")
# Clocks differ, and a request takes its time: so much is asked for again, and known again by its time stamps.
OVERLAP_SECONDS = 30.0


class Logs(Protocol):
    """What is asked of Kubernetes; `plmsae.cluster.trainer_api.TrainJobs`."""

    def pods(self, name: str) -> list[Pod]:
        """Pods of a job, by node."""
        ...

    def log(self, pod: str, *, since_seconds: int | None = None, tail_lines: int | None = None) -> list[str]:
        """Lines of a pod's log with their time stamps."""
        ...


class JobLog:
    """Shows what node 0 writes.

    It is asked for piece by piece: a connection that stays open for a day is one that proxies cut, and a pod that is
    started anew has another name. A failure to see pods or logs never stops a training; it is said once.

    Args:
        logs: Kubernetes.
        job: Name of the job.
        clock: Seconds that only go up.
    """

    def __init__(self, logs: Logs, job: str, clock: Callable[[], float]) -> None:
        self.logs, self.job, self.clock = logs, job, clock
        self._seen: dict[str, tuple[str, float]] = {}  # pod -> last time stamp, when it was asked
        self._told: set[str] = set()

    def look(self) -> list[Pod]:
        """Show what is new; returns the pods as they are now, none if they cannot be seen."""
        pods: list[Pod] = []
        try:
            pods = self.logs.pods(self.job)
            for pod in pods:
                if pod.node == 0 and pod.phase != "Pending":
                    self._show(pod)
        except PlmsaeError as error:
            if error.problem not in self._told:
                self._told.add(error.problem)
                logger.warning("pods and logs of the TrainJob cannot be seen: %s", error.problem)
        return pods

    def tail(self, pod: Pod, num_lines: int) -> None:
        """Show the last lines of a pod."""
        try:
            for line in self.logs.log(pod.name, tail_lines=num_lines):
                logger.info("node %d | %s", pod.node, _parts(line)[1])
        except PlmsaeError as error:
            logger.warning("the log of node %d cannot be seen: %s", pod.node, error.problem)

    def _show(self, pod: Pod) -> None:
        last, asked = self._seen.get(pod.name, ("", 0.0))
        now = self.clock()
        since = math.ceil(now - asked + OVERLAP_SECONDS) if last else None
        for line in self.logs.log(pod.name, since_seconds=since):
            stamp, text = _parts(line)
            if _order(stamp) > _order(last):
                logger.info("node %d | %s", pod.node, text)
                last = stamp
        self._seen[pod.name] = (last, now)


def _parts(line: str) -> tuple[str, str]:
    stamp, _, text = line.partition(" ")
    return stamp, text


def _order(stamp: str) -> tuple[str, str]:
    """Key that orders RFC 3339 times in UTC, whose fractions of a second have no trailing zeros."""
    seconds, _, fraction = stamp.removesuffix("Z").partition(".")
    return seconds, fraction.ljust(9, "0")
