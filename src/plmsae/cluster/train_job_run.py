"""Runs a TrainJob to its end: creates it or takes up its own, tells how it goes, deletes it when it is to stop."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, TypeVar

from plmsae.cluster.train_job import KEY_ANNOTATION
from plmsae.cluster.train_job_log import JobLog
from plmsae.cluster.trainer_api import Pod
from plmsae.errors import PlmsaeError, TryAgainError, UserError

logger = logging.getLogger("plmsae")
FIRST_SECONDS, LONGEST_SECONDS, GROWTH = 1.0, 10.0, 1.5
PATIENCE_SECONDS = 300.0
# What the local clock allows over the cluster's own limit, so that the cluster's word comes first.
SLACK_SECONDS = 600.0
NUM_LAST_LINES = 30
T = TypeVar("T")


class Jobs(Protocol):
    """What is asked of Kubernetes; `plmsae.cluster.trainer_api.TrainJobs`."""

    def create(self, manifest: Mapping[str, Any]) -> bool:
        """Create; False if it is there."""
        ...

    def get(self, name: str) -> dict[str, Any] | None:
        """The job, or None."""
        ...

    def delete(self, name: str) -> None:
        """Delete, if it is there."""
        ...

    def pods(self, name: str) -> list[Pod]:
        """Its pods, by node."""
        ...

    def log(self, pod: str, *, since_seconds: int | None = None, tail_lines: int | None = None) -> list[str]:
        """Lines of a pod's log with their time stamps."""
        ...


class StoppedError(BaseException):
    """The process was told to end by a signal; a BaseException, so that nobody on the way takes it for a failure."""


@dataclass(frozen=True)
class State:
    """A job at one moment: `Complete`, `Failed`, `Suspended` or `Running`, and why."""

    name: str
    reason: str = ""
    message: str = ""

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> State:
        """Read from the conditions of a job; a job without any is at work."""
        conditions = job.get("status", {}).get("conditions", ())
        for name in ("Complete", "Failed", "Suspended"):
            for condition in conditions:
                if condition["type"] == name and condition["status"] == "True":
                    return cls(name, condition.get("reason", ""), " ".join(condition.get("message", "").split())[:300])
        return cls("Running")


@dataclass
class TrainJobRun:
    """One TrainJob and what to do about it.

    Attributes:
        jobs: Kubernetes.
        manifest: The job, from `train_job`.
        forget: Removes what the ranks of an earlier attempt have written about their failure.
        failure: What a rank has written about its failure, or None; asked again and again.
        finished: Whether the result is there: a job that is complete without it is made anew.
        sleep: Waits so many seconds.
        clock: Seconds that only go up.
    """

    jobs: Jobs
    manifest: Mapping[str, Any]
    forget: Callable[[], None]
    failure: Callable[[], PlmsaeError | None]
    finished: Callable[[], bool]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def run(self) -> None:
        """Create the job, or take up the one that an earlier attempt of the same work has left, and follow it.

        Raises:
            PlmsaeError: What a rank said about its failure; the job is deleted.
            UserError: Kubernetes refuses, or a job of this name is somebody else's.
            TryAgainError: The job failed without a word, took too long or was deleted; this process was told to stop,
                and the job is deleted; or Kubernetes did not answer for five minutes, and the job goes on.
            KeyboardInterrupt: Ctrl-C; the job is deleted.
        """
        with _signals():
            try:
                if not self._begin():
                    return
                self._follow()
            except StoppedError as error:
                told = self._stopped()
                raise TryAgainError(
                    f"{error}; {told}", where=self.where, fix="run it again: it goes on from the last checkpoint"
                ) from error
            except KeyboardInterrupt:
                logger.warning("%s", self._stopped())
                raise

    @property
    def name(self) -> str:
        """Name of the job."""
        return str(self.manifest["metadata"]["name"])

    @property
    def where(self) -> str:
        """The job, for messages."""
        return f"TrainJob {self.manifest['metadata']['namespace']}/{self.name}"

    def _begin(self) -> bool:
        """Have a job at work; False if the result of an earlier one is there already."""
        job = self._patient(lambda: self.jobs.get(self.name))
        if job is not None:
            self._check_owner(job)
            state = State.of(job)
            if state.name == "Complete" and self.finished():
                logger.info("%s is complete already", self.where)
                return False
            if state.name in ("Complete", "Failed") or "deletionTimestamp" in job["metadata"]:
                logger.info("%s of an earlier attempt is removed", self.where)
                self._remove()
                job = None
        if job is None:
            self.forget()
        if job is None and self._patient(lambda: self.jobs.create(self.manifest)):
            logger.info("%s created", self.where)
        else:
            logger.info("%s is there already and is taken up", self.where)
        return True

    def _check_owner(self, job: Mapping[str, Any]) -> None:
        own = self.manifest["metadata"]["annotations"][KEY_ANNOTATION]
        if job["metadata"].get("annotations", {}).get(KEY_ANNOTATION) != own:
            raise UserError(
                "a TrainJob of this name is there, and it is not of this work",
                where=self.where,
                fix=f"look at it, then: kubectl delete trainjob {self.name}",
            )

    def _remove(self) -> None:
        """Delete the job and wait until it is gone."""
        self._patient(lambda: self.jobs.delete(self.name))
        began = self.clock()
        while self._patient(lambda: self.jobs.get(self.name)) is not None:
            if self.clock() - began > PATIENCE_SECONDS:
                raise TryAgainError(
                    "the TrainJob is not deleted", where=self.where, fix="see: kubectl describe trainjob"
                )
            self.sleep(FIRST_SECONDS)

    def _follow(self) -> None:
        log, last, pause, began = JobLog(self.jobs, self.name, self.clock), "", FIRST_SECONDS, self.clock()
        limit = self.manifest["spec"]["activeDeadlineSeconds"] + SLACK_SECONDS
        while True:
            job = self._patient(lambda: self.jobs.get(self.name))
            pods = log.look()
            said = self.failure()
            # What may be tried again, as the loss of a node, is the runtime's to try again.
            if said is not None and not isinstance(said, TryAgainError):
                self._lost(log, pods)
                self._remove()
                raise said
            if job is None:
                raise TryAgainError(
                    "the TrainJob was deleted by somebody else",
                    where=self.where,
                    fix="run it again: it goes on from the last checkpoint",
                )
            state = State.of(job)
            line = _line(state, pods, int(self.manifest["spec"]["trainer"]["numNodes"]))
            if line != last:
                logger.info("%s %s", self.where, line)
                last, pause = line, FIRST_SECONDS
            if state.name == "Complete":
                return
            if state.name == "Failed":
                self._lost(log, pods)
                raise self._failed(state, pods, said)
            if self.clock() - began > limit:
                raise TryAgainError(
                    f"the TrainJob has not ended after {limit / 3600:.1f} h; {self._stopped()}",
                    where=self.where,
                    fix="run it again: it goes on from the last checkpoint",
                )
            self.sleep(pause)
            pause = min(pause * GROWTH, LONGEST_SECONDS)

    def _lost(self, log: JobLog, pods: list[Pod]) -> None:
        """Show the end of the log of every node but the first, which was shown all along."""
        for pod in pods:
            if pod.node:
                log.tail(pod, NUM_LAST_LINES)

    def _failed(self, state: State, pods: list[Pod], said: PlmsaeError | None) -> TryAgainError:
        words = [f"node {pod.node}: {pod.trouble}" for pod in pods if pod.trouble]
        told = "; ".join([*words, *([f"a rank said: {said.problem}"] if said else [])])
        if state.reason == "DeadlineExceeded":
            hours = self.manifest["spec"]["activeDeadlineSeconds"] / 3600
            return TryAgainError(
                f"the TrainJob did not end within its {hours:.1f} h",
                where=self.where,
                fix="run it again: it goes on from the last checkpoint",
            )
        return TryAgainError(
            f"the TrainJob failed: {state.message or state.reason}" + (f" ({told})" if told else ""),
            where=self.where,
            fix="the log above says why; run it again: it goes on from the last checkpoint",
        )

    def _stopped(self) -> str:
        """Delete the job, once and without waiting for its end: whoever stops us gives us seconds."""
        try:
            self.jobs.delete(self.name)
        except PlmsaeError as error:
            by_hand = f"kubectl delete trainjob {self.name}"
            return f"the TrainJob goes on, for it could not be deleted ({error.problem}): {by_hand}"
        return "the TrainJob is deleted"

    def _patient(self, ask: Callable[[], T]) -> T:
        """Ask until Kubernetes answers, for five minutes."""
        began, pause = self.clock(), FIRST_SECONDS
        while True:
            try:
                return ask()
            except TryAgainError as error:
                if self.clock() - began > PATIENCE_SECONDS:
                    raise
                logger.warning("%s; asking again", error.problem)
            self.sleep(pause)
            pause = min(pause * GROWTH, LONGEST_SECONDS)


def _line(state: State, pods: list[Pod], num_nodes: int) -> str:
    """How it goes, in one line; the same line means that nothing has changed."""
    counts = {phase: sum(pod.phase == phase for pod in pods) for phase in ("Pending", "Running", "Succeeded", "Failed")}
    line = f"state={state.name} nodes={num_nodes}" + "".join(
        f" {phase.lower()}={count}" for phase, count in counts.items() if count
    )
    troubles = [f"node {pod.node}: {pod.trouble}" for pod in pods if pod.trouble]
    return line + (f" ({troubles[0]})" if troubles else "")


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM raise `StoppedError` here: Kubernetes sends it to a pod that is to end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(f"stopped by {signal.Signals(number).name}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
