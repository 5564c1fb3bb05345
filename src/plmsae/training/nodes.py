"""A training whose processes run on other machines: what is asked of whoever starts them, and the way there and back.

This process has the inputs, the checkpoints and the export. The machines see a folder that this one sees as well; the
training goes there as a file, and comes back as the checkpoint of its last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from plmsae.errors import PlmsaeError, TryAgainError, UserError
from plmsae.training.job import Feed, Job, clear_failures, failure
from plmsae.training.launch import MODULE
from plmsae.training.loop import Trained, finished
from plmsae.training.member import Failed, Plan

JOB = "job.json"


class Nodes(Protocol):
    """Starts processes on other machines, e.g. `plmsae.cluster.launch.TrainJobLauncher`."""

    @property
    def device(self) -> str:
        """What the machines train on: `cpu` or `cuda`."""
        ...

    @property
    def cache(self) -> str:
        """A folder of each machine's own disk, for blocks of activations that lie in a bucket."""
        ...

    def check(self, num_nodes: int, num_processes: int) -> None:
        """Refuse other numbers of machines, and of processes of each, than are there to be had."""
        ...

    def shared(self, path: Path, folder: Path) -> Path:
        """Where the machines find a file or folder of this process: there, or a copy of it in `folder`."""
        ...

    def run(
        self,
        module: str,
        job: Path,
        *,
        key: str,
        forget: Callable[[], None],
        failure: Callable[[], PlmsaeError | None],
        finished: Callable[[], bool],
    ) -> None:
        """Run a module with a file as its argument in every process, until all have ended."""
        ...


def device_of(nodes: Nodes, device: str) -> str:
    """The device of the training, `cpu` or `cuda`, from the parameter: `auto` takes what the machines have.

    Raises:
        UserError: They have no GPU, and one is asked for.
    """
    if device == "cuda" and nodes.device != "cuda":
        raise UserError(
            "device 'cuda' is asked for, and the nodes have no GPU",
            where="train_sae.device",
            fix="name a gpu_type in the placement, or set train_sae.device to auto",
        )
    return "cpu" if device == "cpu" else nodes.device


def train_on(
    nodes: Nodes, plans: Sequence[Plan], feed: Feed, checkpoints: Path, num_processes: int
) -> list[Trained | Failed]:
    """`train_all` with every batch divided among the processes of other machines.

    Args:
        nodes: Who starts them.
        plans: What they train; their device is that of the machines.
        feed: What they read, as this process sees it.
        checkpoints: Folder that the machines see; its name stands for the work.
        num_processes: Processes of all machines.

    Raises:
        UserError: The batches cannot be divided among them.
        PlmsaeError: What a process ended with.
        TryAgainError: They ended without a word, or were stopped; the next call goes on from the last checkpoint.
    """
    feed.check(plans[0].settings.batch_size, num_processes)  # before machines are asked for
    there = replace(feed, store=str(nodes.shared(Path(feed.store), checkpoints / "inputs")), cache=nodes.cache)
    # What comes back is read here, where there may be no GPU.
    here = [replace(plan, settings=replace(plan.settings, device="cpu")) for plan in plans]
    path = checkpoints / JOB
    Job(plans, there, checkpoints).write(path)
    nodes.run(
        MODULE,
        path,
        key=checkpoints.name,
        forget=lambda: clear_failures(checkpoints),
        failure=lambda: failure(checkpoints),
        finished=lambda: finished(here, checkpoints) is not None,
    )
    ended = finished(here, checkpoints)
    if ended is None:
        raise TryAgainError(
            "the processes have ended, and the checkpoint of the last step is not there",
            where=str(checkpoints),
            fix="run it again; if it stays so, look whether the volume is one and the same on all nodes",
        )
    return ended
