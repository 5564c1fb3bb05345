"""Trainings in processes of their own on this machine: one training divided among them, or SAEs dealt out to them.

The processes are those that torchrun would start, with the same environment; what is here beside it is that an error of
one reaches the caller as it was, that SIGTERM reaches all, and that none outlives the caller.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from plmsae.errors import DataError, PlmsaeError, TryAgainError
from plmsae.training.checkpoint import latest_step
from plmsae.training.interruption import Interruption
from plmsae.training.job import Feed, Job, clear_failures, failure, failures
from plmsae.training.loop import Trained, finished
from plmsae.training.member import Failed, Plan
from plmsae.training.worker import LAUNCHED

MODULE = "plmsae.training.worker"
# A process that was told to end first writes a checkpoint.
GRACE_SECONDS = 25.0
# Where one failed, the others notice at once or wait for it for ever.
FAILED_GRACE_SECONDS = 3.0
_LOOPBACK = "127.0.0.1"


def train_together(plans: Sequence[Plan], feed: Feed, checkpoints: Path, num_processes: int) -> list[Trained | Failed]:
    """`train_all` with every batch divided among processes.

    Raises:
        PlmsaeError: What a process ended with; `TryAgainError` where one ended without a word, or SIGTERM came. The
            next call goes on from the last checkpoint.
        KeyboardInterrupt: SIGINT came.
    """
    team = _Team(Job(plans, feed, checkpoints), num_processes)
    _run([team])
    return team.result()


def train_apart(plans: Sequence[Plan], feed: Feed, checkpoints: Path, num_processes: int) -> list[Trained | Failed]:
    """`train_all` in each process with a part of the plans, dealt out in turn; each reads the store by itself.

    Raises:
        PlmsaeError: See `train_together`.
        KeyboardInterrupt: See `train_together`.
    """
    parts = [plans[place::num_processes] for place in range(min(num_processes, len(plans)))]
    teams = []
    for place, part in enumerate(parts):
        name = f"part-{place}"
        own = replace(feed, cache=str(Path(feed.cache) / name), cache_mib=max(1, feed.cache_mib // len(parts)))
        teams.append(_Team(Job(part, own, checkpoints / name), 1, place))
    _run(teams)
    failed = {place: team.error() for place, team in enumerate(teams) if team.failed}
    for error in failed.values():
        # A part whose SAEs all diverged: the others go on, as they would in one process.
        if not isinstance(error, DataError) or len(failed) == len(teams):
            raise error
    ended: dict[str, Trained | Failed] = {}
    for place, team in enumerate(teams):
        results = team.lost(failed[place]) if place in failed else team.result()
        ended |= {plan.name: end for plan, end in zip(team.job.plans, results, strict=True)}
    return [ended[plan.name] for plan in plans]


def environment(rank: int, size: int, device: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process, and that the launcher holds the store and standard input."""
    found = {
        "RANK": str(rank),
        "LOCAL_RANK": str(device),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        LAUNCHED: "1",
    }
    if sys.platform == "linux":  # gloo would look up the machine's name, which need not resolve
        found["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return found


@dataclass
class _Team:
    """The processes of one job.

    Attributes:
        job: The training.
        size: Among how many processes each batch is divided.
        device: Number of the first process's GPU.
        processes: What was started, by rank.
        killed: Ranks that were ended because another one failed.
    """

    job: Job
    size: int
    device: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)

    def start(self, port: int) -> None:
        """Start the processes."""
        clear_failures(self.job.checkpoints)
        path = self.job.checkpoints / "job.json"
        self.job.write(path)
        for rank in range(self.size):
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(path)],
                stdin=subprocess.PIPE,
                stdout=2,  # what is printed belongs to the log, not to the result of the command
                env={**os.environ, **environment(rank, self.size, self.device + rank, port)},
                start_new_session=True,  # Ctrl-C in a terminal reaches the launcher alone, which tells them
            )
            self.processes.append(process)

    @property
    def running(self) -> bool:
        """Whether a process still runs."""
        return any(process.poll() is None for process in self.processes)

    @property
    def failed(self) -> bool:
        """Whether a process ended with another code than 0."""
        return any(process.poll() not in (None, 0) for process in self.processes)

    def signal(self, number: int) -> None:
        """Send a signal to those that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def end(self, seconds: float) -> None:
        """Wait so long for all to end, then kill the others."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                self.killed.add(rank)
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def error(self) -> PlmsaeError:
        """What the training failed with: what one said, before what followed from it."""
        said = failures(self.job.checkpoints)
        first = failure(self.job.checkpoints)
        if first is not None and not isinstance(first, TryAgainError):
            return first
        for rank, process in enumerate(self.processes):
            if process.returncode != 0 and rank not in said and rank not in self.killed:
                code = process.returncode
                how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}; its output says why"
                return TryAgainError(
                    f"process {rank} of {self.size} of the training ended with {how}",
                    where=self.kept(),
                    fix="run the same again: it goes on from there",
                )
        if first is None:
            raise AssertionError("no process failed")
        return first

    def kept(self) -> str:
        """The last checkpoint, in words."""
        step = latest_step(self.job.checkpoints)
        return "no checkpoint was written yet" if step is None else f"last checkpoint: step {step}"

    def result(self) -> list[Trained | Failed]:
        """What became of the plans.

        Raises:
            PlmsaeError: See `error`.
        """
        if self.failed:
            raise self.error()
        found = finished(self.job.plans, self.job.checkpoints)
        if found is None:
            raise TryAgainError(
                "the processes of the training ended without its result", where=self.kept(), fix="run the same again"
            )
        return found

    def lost(self, error: PlmsaeError) -> list[Trained | Failed]:
        """The plans of a training that failed for all of them."""
        step = latest_step(self.job.checkpoints) or 0
        return [Failed(plan.name, error.problem, error.where, error.fix, step) for plan in self.job.plans]


def _run(teams: Sequence[_Team]) -> None:
    """Start all processes and wait until they ended, whichever way.

    Raises:
        TryAgainError: SIGTERM came.
        KeyboardInterrupt: SIGINT came.
    """
    # Port 0 is any that is free; held here, nobody else can take it before the processes meet.
    store = TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False)
    with Interruption() as interruption:
        try:
            for team in teams:
                team.start(store.port)
            while any(team.running for team in teams) and not interruption.requested:
                for team in teams:
                    if team.failed and team.running:
                        team.end(FAILED_GRACE_SECONDS)
                time.sleep(0.02)
            if interruption.requested:
                for team in teams:
                    team.signal(signal.SIGTERM)
                for team in teams:
                    team.end(GRACE_SECONDS)
                interruption.kept = "; ".join(team.kept() for team in teams)
                interruption.stop()
        finally:
            for team in teams:
                team.end(0.0)
