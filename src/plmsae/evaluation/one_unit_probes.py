"""Logistic regression on one unit at a time, for all units of a dictionary at once.

For each unit the two parameters (slope a, intercept b) minimise what scikit-learn's `LogisticRegression` minimises,

    sum_i s_i [log(1 + exp(z_i)) - y_i z_i] + penalty / 2 a^2,    z_i = a x_i + b,

with s_i the example's weight and penalty = 1 / C; the intercept is not penalised. InterProt (Adams et al. 2025; code
`oned_probe/single_latent.py`) fits this with C = 1 and balanced weights on the SAE's raw activations. On activations
divided by the unit's maximum m the same solution has penalty 1 / (C m^2).

Examples on which a unit is silent differ by their label only, so they enter as two weights. What is left is a sum over
stored activations: Newton steps of all units of a block run in step, on arrays that stay in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.residue_labels import Sparse

Bools = NDArray[np.bool_]
ENTRIES_AT_ONCE = 32_768  # 256 KiB per array
_MAX_STEPS = 100
# The Newton decrement as a share of the loss: below the first, steps need no check; below the second, they end.
_ROUNDING = 1e-11
_DONE = 1e-15


@dataclass(frozen=True)
class OneUnitFits:
    """A probe per unit: positive where slope * activation + intercept > 0.

    Attributes:
        slopes: [n] fp64.
        intercepts: [n] fp64.
        converged: [n] false where Newton's method had not ended.
    """

    slopes: Floats
    intercepts: Floats
    converged: Bools


def balanced_weights(targets: Bools) -> Floats:
    """Weights [E] that give both classes half of the total E (scikit-learn's `class_weight="balanced"`).

    Raises:
        DataError: One of the classes has no example.
    """
    positives = int(targets.sum())
    negatives = len(targets) - positives
    if positives == 0 or negatives == 0:
        raise DataError(
            f"a probe needs examples of both classes, there are {positives} positive and {negatives} negative ones",
            fix="take more proteins, or raise min_positives",
        )
    return np.where(targets, len(targets) / (2 * positives), len(targets) / (2 * negatives))


def fit_each_unit(x: Sparse, targets: Bools, weights: Floats, penalties: Floats) -> OneUnitFits:
    """Fit a probe to every unit.

    Args:
        x: Activations [E, n], CSC (another format is converted), finite.
        targets: [E] true for positive examples.
        weights: [E] weights >= 0, e.g. `balanced_weights`.
        penalties: [n] penalty of each slope, > 0: 1 / C, or 1 / (C m^2).

    Raises:
        DataError: An activation is not finite, shapes do not fit, a penalty is not positive, or one class has no
            weight.
    """
    columns = x.tocsc()
    num_units = columns.shape[1]
    if columns.shape[0] != len(targets) or len(weights) != len(targets) or len(penalties) != num_units:
        raise DataError(
            f"{columns.shape} activations, {len(targets)} targets, {len(weights)} weights, {len(penalties)} penalties",
            fix="pass one target and weight per example and one penalty per unit",
        )
    if not np.isfinite(columns.data).all():
        raise DataError("an activation is not a finite number", fix="train the SAE again, or check the store")
    if not (penalties > 0).all():
        raise DataError("a penalty is not positive", fix="give every unit a penalty above 0")
    total, positive = float(weights.sum()), float(weights[targets].sum())
    if not 0 < positive < total:
        raise DataError("a probe needs examples of both classes", fix="take more proteins")
    # A silent unit has slope 0, and the intercept that the weights alone give.
    start = float(np.log(positive / (total - positive)))
    slopes, intercepts = np.zeros(num_units), np.full(num_units, start)
    converged = np.ones(num_units, dtype=bool)
    pointers = columns.indptr.astype(np.int64)
    active = np.flatnonzero(np.diff(pointers))
    first = 0
    while first < len(active):
        last = int(np.searchsorted(pointers[active + 1], pointers[active[first]] + ENTRIES_AT_ONCE, side="right"))
        some = active[first : max(last, first + 1)]
        inside = slice(pointers[some[0]], pointers[some[-1] + 1])  # silent units in between have no entries
        rows = columns.indices[inside]
        block = _Block(
            values=columns.data[inside].astype(np.float64),
            weights=weights[rows],
            targets=targets[rows],
            lengths=np.diff(pointers)[some],
            penalties=penalties[some],
            total=total,
            positive=positive,
        )
        slopes[some], intercepts[some], converged[some] = block.solve(start)
        first += len(some)
    return OneUnitFits(slopes, intercepts, converged)


class _Block:
    """Consecutive units with all their stored entries, unit after unit."""

    def __init__(
        self,
        values: Floats,
        weights: Floats,
        targets: Bools,
        lengths: NDArray[np.int64],
        penalties: Floats,
        total: float,
        positive: float,
    ) -> None:
        self._values, self._weights, self._lengths, self._penalties = values, weights, lengths, penalties
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._starts = starts
        self._positive = positive
        self._silent = total - np.add.reduceat(weights, starts)  # weight of the examples without an entry
        self._moment = np.add.reduceat(np.where(targets, weights * values, 0.0), starts)

    def solve(self, start: float) -> tuple[Floats, Floats, Bools]:
        """Slopes, intercepts, and whether each unit's Newton method ended."""
        count = len(self._lengths)
        found = np.zeros((2, count))
        found[1] = start
        ended = np.zeros(count, dtype=bool)
        places = np.arange(count)  # of the units that are still on their way
        here, step = found.copy(), np.zeros((2, count))
        loss = np.full(count, np.inf)
        sure = np.ones(count, dtype=bool)
        for _ in range(_MAX_STEPS):
            trial = here + step
            value, gradient, hessian = self._derivatives(trial)
            better = sure | (value <= loss)
            here = np.where(better, trial, here)
            loss = np.where(better, value, loss)
            determinant = hessian[0] * hessian[2] - hessian[1] ** 2
            newton = -np.stack(
                [
                    hessian[2] * gradient[0] - hessian[1] * gradient[1],
                    hessian[0] * gradient[1] - hessian[1] * gradient[0],
                ]
            ) / np.where(determinant > 0, determinant, np.inf)
            decrement = -(gradient * newton).sum(axis=0)
            step = np.where(better, newton, step / 2)  # a step that led uphill is halved
            sure = better & (decrement <= _ROUNDING * loss)
            done = better & (decrement <= _DONE * loss)
            found[:, places] = np.where(done, here + step, here)
            ended[places[done]] = True
            if done.all():
                break
            if 2 * done.sum() >= len(done):
                left = ~done
                self._keep(left)
                places, loss, sure = places[left], loss[left], sure[left]
                here, step = here[:, left], step[:, left]
        return found[0], found[1], ended

    def _keep(self, units: Bools) -> None:
        entries = np.repeat(units, self._lengths)
        self._values, self._weights = self._values[entries], self._weights[entries]
        self._lengths, self._penalties = self._lengths[units], self._penalties[units]
        self._silent, self._moment = self._silent[units], self._moment[units]
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])

    def _derivatives(self, point: Floats) -> tuple[Floats, Floats, Floats]:
        """Loss [m], gradient [2, m] and Hessian [3, m] (aa, ab, bb) at slopes and intercepts [2, m]."""
        slopes, intercepts = point
        z = np.repeat(slopes, self._lengths) * self._values + np.repeat(intercepts, self._lengths)
        p, log_one_plus = _logistic(z)
        weighted = self._weights * p
        curve = weighted * (1.0 - p)
        first = curve * self._values
        p0, log0 = _logistic(intercepts)
        sums = [
            np.add.reduceat(terms, self._starts)
            for terms in (
                self._weights * log_one_plus, weighted * self._values, weighted,
                first * self._values, first, curve,
            )
        ]  # fmt: skip
        loss = sums[0] + self._silent * log0 - slopes * self._moment - intercepts * self._positive
        gradient = np.stack(
            [sums[1] - self._moment + self._penalties * slopes, sums[2] + self._silent * p0 - self._positive]
        )
        hessian = np.stack([sums[3] + self._penalties, sums[4], sums[5] + self._silent * p0 * (1.0 - p0)])
        return loss + 0.5 * self._penalties * slopes**2, gradient, hessian


def _logistic(z: Floats) -> tuple[Floats, Floats]:
    """1 / (1 + exp(-z)) and log(1 + exp(z)), without overflow."""
    small = np.exp(-np.abs(z))
    one_plus = 1.0 + small
    p = np.where(z >= 0, 1.0, small) / one_plus
    return p, np.log(one_plus) + np.maximum(z, 0.0)
