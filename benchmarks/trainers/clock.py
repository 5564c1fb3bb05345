"""What the trainers of `training.py` share: the job, a clock that reads from outside, the held-out FVU.

Run by the Pythons of several environments: torch and the standard library alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Job:
    """One round of one trainer.

    Attributes:
        data: Folder with the same activations in each trainer's own form.
        out: File for the figures.
        architecture: `topk`, `batch_topk` or `matryoshka`.
        d: Width of a row.
        n: Latents.
        k: Active latents per row.
        batch: Rows of a step.
        warmup: Steps before the clock starts.
        steps: Steps that it measures.
        learning_rate: Adam's, after a linear warm-up over the first `warmup` steps.
        group_sizes: Of matryoshka.
        scale: sqrt(mean ||x||^2) of the rows.
        threads: Of torch.
        reader: Of ours: `store`, or `tensor` for the shortest one there is.
    """

    data: str
    out: str
    architecture: str
    d: int
    n: int
    k: int
    batch: int
    warmup: int
    steps: int
    learning_rate: float
    group_sizes: list[int]
    scale: float
    threads: int
    reader: str = "store"

    @property
    def folder(self) -> Path:
        return Path(self.data)

    @property
    def all_steps(self) -> int:
        """One more than what is measured: the clock stops where its batch is asked for."""
        return self.warmup + self.steps + 1

    @property
    def middle(self) -> int:
        """The step at which everyone logs and saves, once."""
        return self.warmup + self.steps // 2

    @property
    def now(self) -> Callable[[], float]:
        """The clock for parts of the time: of one thread its CPU time, which hardly feels the neighbours."""
        return time.process_time if self.threads == 1 else time.perf_counter


class Clock:
    """From the request for batch `first` to the request for batch `first + steps`: as many steps, with whatever the
    trainer does between them, and however far ahead it asks."""

    def __init__(self, job: Job, first: int) -> None:
        self.job, self.first = job, first
        self.waited = 0.0
        self._begun: tuple[float, float] | None = None
        self._ended: tuple[float, float] | None = None
        self._peak_kib = 0

    def tick(self, batch: int) -> None:
        """To be called before batch 0, 1, 2, ... is made."""
        if batch == self.first:
            self._begun = time.perf_counter(), time.process_time()
            self.waited = 0.0
        elif batch == self.first + self.job.steps and self._ended is None:
            self._ended = time.perf_counter(), time.process_time()
            self._measured_wait = self.waited
            self._peak_kib = peak_kib()

    def feed(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """The batches, with the time in which the trainer waits for them."""
        number = 0
        while True:
            self.tick(number)
            start = self.job.now()
            batch = next(batches)
            self.waited += self.job.now() - start
            yield batch
            number += 1

    def report(self, reconstruct: Callable[[Tensor], Tensor], *, waits: bool = True) -> None:
        """Write the figures; `reconstruct` takes raw rows. Without `waits` nobody measured the wait for data."""
        assert self._begun is not None
        assert self._ended is not None
        wall, cpu = (end - begin for begin, end in zip(self._begun, self._ended, strict=True))
        figures = {
            "wall": wall,
            "cpu": cpu,
            "waits": self._measured_wait / (cpu if self.job.threads == 1 else wall) if waits else None,
            "peak_mib": self._peak_kib / 1024,
            "fvu": held_out_fvu(self.job, reconstruct),
        }
        Path(self.job.out).write_text(json.dumps(figures))


def peak_kib() -> int:
    """Most memory that this process has held so far; `getrusage` would give its parent's, if that is more."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0])


def held_out_fvu(job: Job, reconstruct: Callable[[Tensor], Tensor]) -> float:
    """sum ||x - x^||^2 / sum ||x - mean||^2 over the held-out rows."""
    x = torch.load(job.folder / "valid.pt", weights_only=True)
    with torch.no_grad():
        error = sum(float((part - reconstruct(part)).double().square().sum()) for part in x.split(job.batch))
    return error / float((x.double() - x.double().mean(0)).square().sum())


def shuffled(rows: Tensor, batch: int) -> Iterator[Tensor]:
    """The shortest reader there is: a permutation per epoch, an index per batch."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - batch + 1, batch):
            yield rows[order[start : start + batch]]


def job_of_command_line() -> Job:
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    return job
