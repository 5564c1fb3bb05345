"""Bootstrap over proteins: seeded, vectorised, and paired because every quantity shares the same resamples.

A resample draws as many proteins as there are, with replacement; a statistic that is a function of sums over
proteins (a ratio, an F1, a mean) is recomputed from the resampled sums. Percentile intervals (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from plmsae.errors import UserError

Floats = NDArray[np.float64]
Number = TypeVar("Number", np.int64, np.float64)
_RESAMPLES_AT_ONCE = 250


@dataclass(frozen=True)
class Interval:
    """A point estimate with its percentile interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """For people, e.g. `0.412 [0.398, 0.427]`."""
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def short(self, digits: int = 3) -> str:
        """The same, without bounds where they round to the value."""
        value, low, high = (f"{number:.{digits}f}" for number in (self.value, self.low, self.high))
        return value if value == low == high else self.text(digits)


def resampled_sums(sums: NDArray[Any], num_resamples: int, seed: int) -> Floats:
    """Sums over proteins in every resample.

    Args:
        sums: [num_proteins, ...] what each protein contributes.
        num_resamples: Number of resamples.
        seed: Seed; equal seeds and protein counts draw the same proteins, which makes differences paired.

    Returns:
        [num_resamples, ...] float64.

    Raises:
        UserError: There is no protein, or no resample is asked for.
    """
    num_proteins = len(sums)
    if num_proteins == 0 or num_resamples < 1:
        raise UserError(
            f"a bootstrap needs proteins and resamples, there are {num_proteins} and {num_resamples}",
            fix="raise max_proteins or num_resamples",
        )
    rng = np.random.default_rng(seed)
    whole = np.issubdtype(sums.dtype, np.integer)
    flat = np.asarray(sums, dtype=np.float64).reshape(num_proteins, -1)
    even = np.full(num_proteins, 1.0 / num_proteins)
    pieces = []
    for first in range(0, num_resamples, _RESAMPLES_AT_ONCE):  # bounds the memory of the weights
        count = min(_RESAMPLES_AT_ONCE, num_resamples - first)
        weights = rng.multinomial(num_proteins, even, size=count).astype(np.float64)
        # Sums of whole numbers are exact in any order; others must not depend on how many cores BLAS finds.
        pieces.append(weights @ flat if whole else np.einsum("rp,pk->rk", weights, flat))
    return np.concatenate(pieces).reshape(num_resamples, *np.shape(sums)[1:])


def percentile_bounds(samples: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Lower and upper bound over axis 0.

    Args:
        samples: [num_resamples, ...]; NaN marks a resample in which the statistic is undefined, and is left out.
        confidence: Coverage, e.g. 0.95.

    Returns:
        Two arrays [...]; NaN where no resample defines the statistic.
    """
    tail = 50.0 * (1.0 - confidence)
    undefined = np.isnan(samples).all(axis=0)
    filled = np.where(undefined, 0.0, samples)
    low, high = np.nanpercentile(filled, [tail, 100.0 - tail], axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def intervals(
    sums: NDArray[Any],
    statistics: Callable[[Floats], dict[str, Floats]],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Point estimates and intervals of named statistics of sums over proteins.

    Args:
        sums: [num_proteins, ...] what each protein contributes.
        statistics: Maps sums [num_samples, ...] to name -> [num_samples].
        num_resamples: Number of resamples.
        confidence: Coverage, e.g. 0.95.
        seed: Seed.
    """
    point = statistics(np.asarray(sums, dtype=np.float64).sum(axis=0, keepdims=True))
    samples = statistics(resampled_sums(sums, num_resamples, seed))
    found = {}
    for name, value in point.items():
        low, high = percentile_bounds(samples[name], confidence)
        found[name] = Interval(float(value[0]), float(low), float(high))
    return found


def group_sums(values: NDArray[Number], owners: NDArray[np.int64]) -> NDArray[Number]:
    """Sums of rows by owner: [num_rows, ...] and [num_rows] -> [num_owners, ...], of the same type."""
    summed = np.zeros((int(owners.max(initial=-1)) + 1, *values.shape[1:]), dtype=values.dtype)
    np.add.at(summed, owners, values)
    return summed
