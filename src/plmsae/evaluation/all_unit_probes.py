"""Logistic regression on all units together, along a path of regularisation strengths.

The objective is scikit-learn's, C sum_i s_i log(1 + exp(-(2 y_i - 1) z_i)) + penalty with z = X w + b, the penalty
||w||_1 or ||w||^2 / 2 and the intercept free. C rises along the path and every solution starts at the one before.

Both penalties are minimised by L-BFGS-B (Byrd et al. 1995). For L1 the weights are split into their positive and
negative parts, both >= 0, where the penalty is smooth and zeros are exact; only units that may matter are in the
problem: those with a weight and those whose gradient exceeds the penalty. Afterwards the optimality conditions of all
other units are checked and violators are let in (the working set of Tibshirani et al. 2012, without their heuristic).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from plmsae.errors import UserError, did_you_mean
from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.one_unit_probes import Bools
from plmsae.evaluation.residue_labels import Sparse

PENALTIES = ("l1", "l2")
_SLACK = 1e-3  # a gradient may exceed the penalty by this share before its unit is let in
_MAX_ROUNDS = 20


@dataclass(frozen=True)
class Path:
    """Probes of one class along the path.

    Attributes:
        strengths: [K] ascending C.
        weights: [K, n] weights.
        intercepts: [K].
        converged: [K] false where L-BFGS-B stopped at its iteration limit.
    """

    strengths: Floats
    weights: Floats
    intercepts: Floats
    converged: Bools


def fit_path(
    x: Sparse,
    targets: Bools,
    weights: Floats,
    strengths: Sequence[float],
    penalty: str,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Path:
    """Fit the path of one class.

    Args:
        x: Activations [E, n], CSR.
        targets: [E] true for positive examples.
        weights: [E] weights of the examples, summing to E (`balanced_weights`).
        strengths: C, ascending, > 0.
        penalty: `l1` or `l2`.
        tolerance: Largest component of the projected gradient, as a share of the objective's scale C E.
        max_iterations: The most steps of L-BFGS-B per solution.

    Raises:
        UserError: The penalty is unknown, or C does not ascend from above 0.
    """
    if penalty not in PENALTIES:
        raise UserError(f"unknown penalty '{penalty}'", where="penalty", fix=did_you_mean(penalty, PENALTIES))
    ascending = np.asarray(strengths, dtype=np.float64)
    if len(ascending) == 0 or ascending[0] <= 0 or (np.diff(ascending) <= 0).any():
        raise UserError(f"C must ascend from above 0, not {list(strengths)}", where="strengths", fix="sort them")
    positive = float(weights[targets].sum())
    problem = _Problem(x.astype(np.float64).tocsr(), np.where(targets, 1.0, 0.0), weights, tolerance, max_iterations)
    w = np.zeros(x.shape[1])
    b = float(np.log(positive / (weights.sum() - positive)))
    found, intercepts, converged = [], [], []
    for strength in ascending:
        solve = problem.lasso if penalty == "l1" else problem.ridge
        w, b, ended = solve(strength, w, b)
        found.append(w)
        intercepts.append(b)
        converged.append(ended)
    return Path(ascending, np.stack(found), np.array(intercepts), np.array(converged))


class _Problem:
    """The data of one class; objectives are divided by C times the weight of all examples."""

    def __init__(self, x: Sparse, targets: Floats, weights: Floats, tolerance: float, max_iterations: int) -> None:
        self._x, self._columns = x, x.tocsc()
        self._targets, self._weights = targets, weights / weights.sum()
        self._scale = float(weights.sum())
        self._options = {"gtol": tolerance, "ftol": 1e-13, "maxiter": max_iterations, "maxfun": 2 * max_iterations}

    def ridge(self, strength: float, w: Floats, b: float) -> tuple[Floats, float, bool]:
        """The solution with the penalty ||w||^2 / 2, from a starting point."""
        factor = 1.0 / (strength * self._scale)

        def objective(point: Floats) -> tuple[float, Floats]:
            loss, gradient, slope = self._loss(self._x, point[:-1], point[-1])
            return loss + 0.5 * factor * float(point[:-1] @ point[:-1]), np.append(
                gradient + factor * point[:-1], slope
            )

        found = optimize.minimize(objective, np.append(w, b), jac=True, method="L-BFGS-B", options=self._options)
        return found.x[:-1], float(found.x[-1]), _ended(found)

    def lasso(self, strength: float, w: Floats, b: float) -> tuple[Floats, float, bool]:
        """The solution with the penalty ||w||_1, from a starting point."""
        factor = 1.0 / (strength * self._scale)
        inside = w != 0
        ended = True
        for _ in range(_MAX_ROUNDS):
            gradient = self._loss(self._x, w, b)[1]
            violators = ~inside & (np.abs(gradient) > factor * (1 + _SLACK))
            if not violators.any() and inside.any():
                break
            inside |= violators
            w, b, ended = self._lasso_on(np.flatnonzero(inside), factor, w, b)
            if not violators.any():  # no unit at all: the intercept alone has been fitted
                break
        return w, b, ended

    def _lasso_on(self, units: NDArray[np.int64], factor: float, w: Floats, b: float) -> tuple[Floats, float, bool]:
        count = len(units)
        x = self._columns[:, units].tocsr()

        def objective(point: Floats) -> tuple[float, Floats]:
            loss, gradient, slope = self._loss(x, point[:count] - point[count:-1], point[-1])
            value = loss + factor * float(point[:-1].sum())
            return value, np.concatenate([gradient + factor, factor - gradient, [slope]])

        start = np.concatenate([np.maximum(w[units], 0), np.maximum(-w[units], 0), [b]])
        bounds = optimize.Bounds(np.append(np.zeros(2 * count), -np.inf), np.full(2 * count + 1, np.inf))
        # Relative to the penalty: with little regularisation the gradient that decides about zeros is small as well.
        options = self._options | {"gtol": min(self._options["gtol"], 1e-2 * factor)}
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        solution = np.zeros(len(w))
        solution[units] = found.x[:count] - found.x[count:-1]
        return solution, float(found.x[-1]), _ended(found)

    def _loss(self, x: Sparse, w: Floats, b: float) -> tuple[float, Floats, float]:
        """Weighted mean loss, its gradient by w, and by b."""
        z = x @ w + b
        small = np.exp(-np.abs(z))
        loss = np.log1p(small) + np.maximum(z, 0.0) - self._targets * z
        residual = self._weights * (np.where(z >= 0, 1.0, small) / (1.0 + small) - self._targets)
        return float(self._weights @ loss), np.asarray(x.T @ residual), float(residual.sum())


def _ended(found: Any) -> bool:
    """Whether L-BFGS-B met a tolerance, not a limit (status 1)."""
    return int(found.status) != 1
