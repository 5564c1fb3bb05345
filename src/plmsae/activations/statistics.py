"""Streamed fp64 statistics of activation rows, mergeable and exact under resume."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

BINS_PER_OCTAVE = 64  # a bin is 1.1 % wide
_MIN_EXPONENT, _MAX_EXPONENT = -32, 32
NUM_BINS = (_MAX_EXPONENT - _MIN_EXPONENT) * BINS_PER_OCTAVE
OUTLIER_FACTOR = 10.0  # dictionary_learning's `max_activation_norm_multiple`


@dataclass
class RowStatistics:
    """Sums over rows; `add` rows, or `merge` another one.

    Attributes:
        count: Number of rows, int64 scalar.
        total: Sum of the rows, fp64 [d].
        squares: Sum of the squared values, fp64 [d].
        rounding: Sum of the squared differences to the values before rounding to the stored type, fp64 scalar.
        norms: Number of rows by norm, int64 [NUM_BINS]: logarithmic bins from 2^-32 to 2^32.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    rounding: Tensor
    norms: Tensor

    @classmethod
    def zeros(cls, d_model: int) -> RowStatistics:
        """Statistics of no rows."""
        return cls(
            count=torch.zeros((), dtype=torch.int64),
            total=torch.zeros(d_model, dtype=torch.float64),
            squares=torch.zeros(d_model, dtype=torch.float64),
            rounding=torch.zeros((), dtype=torch.float64),
            norms=torch.zeros(NUM_BINS, dtype=torch.int64),
        )

    def add(self, rows: Tensor, stored: Tensor) -> None:
        """Count rows.

        Args:
            rows: fp32 [n, d], as the model gave them.
            stored: The same as they are read back; the statistics are of these.
        """
        values = stored.double()
        self.rounding += (rows - values).square_().sum()
        self.count += len(values)
        self.total += values.sum(0)
        values.square_()
        self.squares += values.sum(0)
        exponents = values.sum(1).clamp_min_(2.0 ** (2 * _MIN_EXPONENT)).log2_() / 2
        bins = ((exponents - _MIN_EXPONENT) * BINS_PER_OCTAVE).long().clamp_(0, NUM_BINS - 1)
        self.norms += torch.bincount(bins, minlength=NUM_BINS)

    def merge(self, other: RowStatistics) -> None:
        """Add the rows of `other`."""
        for field in fields(self):
            getattr(self, field.name).add_(getattr(other, field.name))

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> tensor, to be stored."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> RowStatistics:
        """The inverse of `tensors`."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})

    @property
    def mean(self) -> Tensor:
        """Mean row, fp64 [d]."""
        return self.total / self.count

    @property
    def second_moment(self) -> Tensor:
        """Mean squared value per dimension, fp64 [d]."""
        return self.squares / self.count

    @property
    def scale(self) -> float:
        """sqrt(mean ||x||^2): x / scale has mean squared norm 1."""
        return float(self.second_moment.sum().sqrt())

    @property
    def centred_fraction(self) -> float:
        """mean ||x - mean||^2 / mean ||x||^2; below 0.5 the mean vector dominates the rows (TopK needs b_dec there)."""
        return float(1 - self.mean.square().sum() / self.second_moment.sum())

    @property
    def relative_rounding_error(self) -> float:
        """RMS of the rounding to the stored type over the RMS of the rows."""
        return float((self.rounding / self.squares.sum()).sqrt())

    @property
    def median_norm(self) -> float:
        """Median row norm, to the width of a bin (1.1 %)."""
        cumulated = torch.cumsum(self.norms, 0)
        return _bin_centre(int(torch.searchsorted(cumulated, self.count / 2)))

    @property
    def num_outliers(self) -> int:
        """Rows whose norm is more than 10 times the median, to the width of a bin."""
        first = int(torch.searchsorted(torch.cumsum(self.norms, 0), self.count / 2))
        return int(self.norms[first + round(BINS_PER_OCTAVE * np.log2(OUTLIER_FACTOR)) + 1 :].sum())


def _bin_centre(index: int) -> float:
    return float(2.0 ** ((index + 0.5) / BINS_PER_OCTAVE + _MIN_EXPONENT))
