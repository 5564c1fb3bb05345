"""Batches by step: whoever knows the step knows the batch, so resuming needs no state of a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from plmsae.errors import DataError, UserError
from plmsae.plms.parallel import ordered_map
from plmsae.saes.group import SOLO, Group


class BatchSource(Protocol):
    """Where activations come from, e.g. `activations.reader.ActivationReader`."""

    @property
    def num_rows(self) -> int:
        """Rows in all; `batch` passes over them again and again."""
        ...

    def batch(self, step: int) -> Tensor:
        """fp32 [B, d], a pure function of the step: rows step * B and on of an endless stream of epochs."""
        ...

    def state(self) -> Mapping[str, int]:
        """What else the rows of a batch depend on, for checkpoints: processes that share them (`world_size`), ..."""
        ...


class Scaled:
    """A source whose rows are divided by the normaliser's scale.

    Args:
        source: Raw activations.
        scale: sqrt(mean ||x||^2): the training sees rows of unit mean squared norm, whatever the model and layer.
    """

    def __init__(self, source: BatchSource, scale: float) -> None:
        self.source = source
        self.scale = scale

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return self.source.num_rows

    def state(self) -> Mapping[str, int]:
        """See `BatchSource`."""
        return self.source.state()

    def batch(self, step: int) -> Tensor:
        """See `BatchSource`; refuses NaN and infinity, which would spread to every weight within a step.

        Raises:
            DataError: Names the step and the number of rows that are not finite.
        """
        x = self.source.batch(step)
        # The sum is not finite if a row is not, and costs a thirtieth; one that overflows is looked into.
        if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
            count = int((~torch.isfinite(x)).any(1).sum())
            raise DataError(
                f"{count} of {len(x)} activation rows hold NaN or infinity",
                where=f"training batch of step {step}",
                fix="extract the activations again: dvc repro --force extract_activations",
            )
        return x / self.scale


class StepStream(IterableDataset[Tensor]):
    """The batches of steps first..last-1, in order, for a loop that wants a data set.

    Args:
        source: Where they come from; with workers it is asked from their threads.
        first: First step.
        last: Step before which it ends.
        num_workers: Threads that make batches ahead, at most 2 * num_workers + 1 of them; 0 makes each when it is
            wanted. Threads and not processes: they share the memory of one reader, and the order is the same.
        waiting: A context to wait for each batch in, e.g. `Interruption.at_once`.
    """

    def __init__(
        self,
        source: BatchSource,
        first: int,
        last: int,
        num_workers: int = 0,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__()
        self.source, self.first, self.last, self.num_workers = source, first, last, num_workers
        self.waiting = waiting

    def __iter__(self) -> Iterator[Tensor]:
        steps = range(self.first, self.last)
        ahead = ordered_map(self.source.batch, steps, self.num_workers) if self.num_workers else None
        for step in steps:
            with self.waiting():
                x = self.source.batch(step) if ahead is None else next(ahead)
            yield x


def check_state(saved: Mapping[str, int], now: Mapping[str, int], where: str) -> None:
    """Refuse to go on with other batches than those that a training began with.

    Args:
        saved: `BatchSource.state` in the checkpoint.
        now: That of the source.
        where: The checkpoints, for the message.

    Raises:
        UserError: Names what differs, on both sides.
    """
    changed = [
        f"{name.replace('_', ' ')} was {saved.get(name, 'not known')} and is {now.get(name, 'not known')}"
        for name in sorted({*saved, *now})
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise UserError(
            f"the training cannot go on with other batches than it began with: {'; '.join(changed)}",
            where=where,
            fix="start it with the same number of processes and the same activations, or delete its checkpoints to "
            "begin again",
        )


def rows(source: BatchSource, num_rows: int, group: Group = SOLO) -> Iterator[Tensor]:
    """Batches that hold exactly the first `num_rows` rows of the stream, or of all there is if that is less.

    With several processes these are the rows of this one, and the rows of all in the order of the ranks are, batch by
    batch, those of the stream. Every process gets equally many batches, of which the last may be empty.
    """
    left, step = min(num_rows, source.num_rows), 0
    while left > 0:
        x = source.batch(step)
        step += 1
        yield x[: max(0, left - group.rank * len(x))]
        left -= len(x) * group.size


def all_rows(source: BatchSource, num_rows: int, group: Group = SOLO) -> Tensor:
    """The rows [N, d] of `rows`, of all processes, in their order."""
    return torch.cat([group.gather(x) for x in rows(source, num_rows, group)])
