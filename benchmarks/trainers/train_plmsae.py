"""A round of ours: `plmsae.training.loop.train` on an activation store, as the stage `train_sae` calls it.

Set up as dictionary_learning's trainers are: the rate stays after the warm-up, whose first factor is zero. With
`profile` as second argument, the seconds of the parts of a training are written to the job's file instead.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from clock import Clock, Job, job_of_command_line, shuffled
from torch import Tensor

from plmsae.activations.reader import ActivationReader
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.training.checkpoint import save_checkpoint
from plmsae.training.data import Scaled
from plmsae.training.look import measure
from plmsae.training.loop import train
from plmsae.training.member import Member
from plmsae.training.settings import TrainingSettings


class Reader(Protocol):
    num_rows: int

    def state(self) -> Mapping[str, int]: ...

    def batch(self, step: int) -> Tensor: ...


class Plain:
    """The shortest reader, which can only go forward."""

    def __init__(self, rows: Tensor, batch: int) -> None:
        self.num_rows = len(rows)
        self._batches: Iterator[Tensor] = shuffled(rows, batch)

    def state(self) -> Mapping[str, int]:
        return {}

    def batch(self, _: int) -> Tensor:
        return next(self._batches)


class Timed:
    """A reader with the clock."""

    def __init__(self, reader: Reader, clock: Clock) -> None:
        self.reader, self.clock = reader, clock
        self.num_rows = reader.num_rows
        self.seconds: list[float] = []  # of every batch: first those that the training starts from, then its steps'

    def state(self) -> Mapping[str, int]:
        return self.reader.state()

    def batch(self, step: int) -> Tensor:
        self.clock.tick(step)
        start = self.clock.job.now()
        batch = self.reader.batch(step)
        self.seconds.append(self.clock.job.now() - start)
        self.clock.waited += self.seconds[-1]
        return batch


def main() -> None:
    job = job_of_command_line()
    store = job.folder / "plmsae"
    clock = Clock(job, job.warmup)
    stored = job.reader == "store"
    reader = ActivationReader(store, "train", job.batch, seed=0) if stored else Plain(tensor(job), job.batch)
    # The clock counts the check for NaN and the division as well: a step has the batch after both.
    source = Timed(Scaled(reader, job.scale), clock)
    valid = Scaled(ActivationReader(store, "valid", job.batch, seed=0), job.scale)
    checkpoints = job.folder / "plmsae-checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)

    def run() -> SparseAutoencoder:
        return train(config(job), "auto", source, valid, settings(job), checkpoints).sae

    if sys.argv[2:] == ["profile"]:
        Path(job.out).write_text(json.dumps(parts(run, source, job)))
        return
    sae = run().folded(job.scale)
    clock.report(sae)


def tensor(job: Job) -> Tensor:
    rows: Tensor = torch.load(job.folder / "train.pt", weights_only=True, mmap=True)
    return rows


def config(job: Job) -> SaeConfig:
    options: dict[str, Any] = {}
    if job.architecture == "matryoshka":
        options = {"reduction": "dictionary_learning", "group_sizes": job.group_sizes}
    return SaeConfig(
        architecture=job.architecture,
        d_model=job.d,
        dictionary_size=job.n,
        k=job.k,
        plm="none",
        plm_revision="none",
        layer=0,
        hook="residual",
        normaliser={"kind": "rms", "scale": job.scale, "folded": False},
        options=options,
    )


def settings(job: Job) -> TrainingSettings:
    return TrainingSettings(
        num_steps=job.all_steps,
        batch_size=job.batch,
        learning_rate=job.learning_rate,
        warmup_steps=job.warmup,
        warmup_from_zero=True,
        decay_steps=0,
        dead_after_tokens=10_000_000,
        validate_every=job.middle,
        num_valid_rows=4096,
        checkpoint_every=job.middle,
        seed=0,
        num_init_rows=job.warmup * job.batch,  # before the clock starts
    )


def parts(run: Callable[[], SparseAutoencoder], source: Timed, job: Job) -> dict[str, float]:
    """Seconds: of a step and its parts, of a look and of a checkpoint; and what is left of the loop, per step."""
    profile = cProfile.Profile(job.now)
    sae = profile.runcall(run)
    stats = pstats.Stats(profile)

    def seconds(function: Any) -> tuple[float, int]:
        code = function.__code__
        _, calls, _, cumulative, _ = stats.stats[code.co_filename, code.co_firstlineno, code.co_name]
        return cumulative, calls

    def mean(function: Any) -> float:
        total, calls = seconds(function)
        return total / calls

    # What the training starts from is read before its loop, and once more in it.
    reads = sum(source.seconds[job.warmup :])
    # The last pool is loaded in the window of the clock, the first before it.
    read = sum(source.seconds[-job.steps :]) / job.steps
    scaling = mean(Scaled.batch) - mean(ActivationReader.batch)
    step = mean(Member.step)
    forward, backward = mean(type(sae).loss), mean(torch.Tensor.backward)
    known = sum(seconds(function)[0] for function in (Member.step, measure, save_checkpoint))
    return {
        "reader": read - scaling,
        "scaling": scaling,
        "forward": forward,
        "backward": backward,
        "rest of the step": step - forward - backward,
        "loop": (seconds(fit_loop())[0] - known - reads) / job.all_steps,
        "look": mean(measure),
        "checkpoint": mean(save_checkpoint),
    }


def fit_loop() -> Any:
    """Lightning's loop over the batches."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    return _TrainingEpochLoop.run


if __name__ == "__main__":
    main()
