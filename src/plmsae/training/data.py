"""Batches by step: whoever knows the step knows the batch, so resuming needs no state of a data loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from plmsae.errors import DataError


class BatchSource(Protocol):
    """Where activations come from, e.g. `activations.reader.ActivationReader`."""

    @property
    def num_rows(self) -> int:
        """Rows in all; `batch` passes over them again and again."""
        ...

    def batch(self, step: int) -> Tensor:
        """fp32 [B, d], a pure function of the step: rows step * B and on of an endless stream of epochs."""
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

    def batch(self, step: int) -> Tensor:
        """See `BatchSource`; refuses NaN and infinity, which would spread to every weight within a step.

        Raises:
            DataError: Names the step and the number of rows that are not finite.
        """
        x = self.source.batch(step)
        if not bool(torch.isfinite(x).all()):
            count = int((~torch.isfinite(x)).any(1).sum())
            raise DataError(
                f"{count} of {len(x)} activation rows hold NaN or infinity",
                where=f"training batch of step {step}",
                fix="extract the activations again: dvc repro --force extract_activations",
            )
        return x / self.scale


class StepStream(IterableDataset[Tensor]):
    """The batches of steps first..last-1, in order, for a loop that wants a data set."""

    def __init__(self, source: BatchSource, first: int, last: int) -> None:
        super().__init__()
        self.source, self.first, self.last = source, first, last

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.first, self.last):
            yield self.source.batch(step)


def rows(source: BatchSource, num_rows: int, first_step: int = 0) -> Iterator[Tensor]:
    """Batches that hold exactly the first `num_rows` rows of the stream, or of all there is if that is less."""
    left, step = min(num_rows, source.num_rows), first_step
    while left > 0:
        x = source.batch(step)[:left]
        left -= len(x)
        step += 1
        yield x
