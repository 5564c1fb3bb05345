"""Laws of how a loss falls: a sum of powers of sizes, fitted to trainings that were done, with intervals.

Every law in here is L = sum_j exp(X_j theta_j), each term a product of powers of what was varied: X_j has a column of
ones and columns of logarithms. Two of them are named:

- `width_law`, Gao et al. 2024 (Scaling and evaluating sparse autoencoders): with n latents of which k are active,
  L(n, k) = exp(alpha + beta_k log k + beta_n log n + gamma log k log n) + exp(zeta + eta log k). The second term is
  what no width removes; without it the law is `width_law(..., floor=False)`.
- `token_law`: L(n, T) = exp(a + b log n) + exp(c + d log T + g log n), what the width leaves and what T tokens leave,
  which is more for wider dictionaries if g is above 0. Hoffmann et al. 2022 have g = 0 and a constant.

The fit is least squares on log L, whose errors are relative ones, with a loss that grows only linearly for outliers
(soft L1). Intervals are those of the jackknife: each training is left out once, and the errors of predicting what was
left out say whether a law with more terms is worth them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.evaluation.bootstrap import Interval

Floats = NDArray[np.float64]
# An error of log L beyond which a training counts as an outlier, about 5 %.
OUTLIER = 0.05
# Shares of the loss that a term may begin with.
_SHARES = (0.05, 0.5, 0.95)
# exp(-40) of the loss is nothing: a term that is not needed stops falling there.
_LOWEST = -40.0
_STEEPEST = 20.0


@dataclass(frozen=True)
class Term:
    """One power of a law.

    Attributes:
        names: Names of its parameters, the constant first.
        columns: [N, parameters] ones, and logarithms of what was varied.
    """

    names: tuple[str, ...]
    columns: Floats


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        parameters: Name -> value.
        predicted: [N] the law's losses.
        errors: [N] log of loss over law.
        left_out: [N, parameters] parameters with each training left out.
        left_out_errors: [N] log of loss over the law that has not seen it.
        confidence: Of the intervals.
    """

    parameters: Mapping[str, float]
    predicted: Floats
    errors: Floats
    left_out: Floats
    left_out_errors: Floats
    confidence: float

    @property
    def error(self) -> float:
        """Root mean square relative error of the fit, about."""
        return float(np.sqrt(np.mean(self.errors**2)))

    @property
    def left_out_error(self) -> float:
        """Root mean square relative error of predicting a training from the others, about."""
        return float(np.sqrt(np.mean(self.left_out_errors**2)))

    def interval(self, statistic: Callable[[Mapping[str, float]], float]) -> Interval:
        """Jackknife interval of a function of the parameters, e.g. `lambda p: p["beta_n"]` (Efron and Tibshirani 1993).

        The t distribution has as many degrees of freedom as there are trainings beyond the parameters.
        """
        from scipy.stats import t

        names = list(self.parameters)
        value = statistic(self.parameters)
        others = np.array([statistic(dict(zip(names, row.tolist()))) for row in self.left_out])
        num = len(others)
        spread = float(np.sqrt((num - 1) / num * np.square(others - others.mean()).sum()))
        half = float(t.ppf((1 + self.confidence) / 2, num - len(names))) * spread
        return Interval(value, value - half, value + half)


def width_law(n: Floats, k: Floats, loss: Floats, *, floor: bool = True, confidence: float = 0.95) -> Law:
    """Gao et al.'s law of width and sparsity; parameters alpha, beta_k, beta_n, gamma and, with a floor, zeta, eta.

    Args:
        n: [N] latents.
        k: [N] active latents per token.
        loss: [N] losses.
        floor: Whether there is a term that no width removes.
        confidence: Of the intervals.

    Raises:
        DataError: See `fit`.
    """
    n, k = _positive("n", n), _positive("k", k)
    one, log_n, log_k = np.ones(len(n)), np.log(n), np.log(k)
    terms = [Term(("alpha", "beta_k", "beta_n", "gamma"), np.stack([one, log_k, log_n, log_k * log_n], 1))]
    if floor:
        terms.append(Term(("zeta", "eta"), np.stack([one, log_k], 1)))
    return fit(terms, loss, confidence=confidence)


def token_law(n: Floats, tokens: Floats, loss: Floats, *, confidence: float = 0.95) -> Law:
    """A law of width and length of the training at one k; parameters a, b of width, c, d, g of what is left to train.

    Args:
        n: [N] latents.
        tokens: [N] training tokens.
        loss: [N] losses.
        confidence: Of the intervals.

    Raises:
        DataError: See `fit`.
    """
    n, tokens = _positive("n", n), _positive("tokens", tokens)
    one, log_n = np.ones(len(n)), np.log(n)
    terms = [
        Term(("a", "b"), np.stack([one, log_n], 1)),
        Term(("c", "d", "g"), np.stack([one, np.log(tokens), log_n], 1)),
    ]
    return fit(terms, loss, confidence=confidence)


def fit(terms: Sequence[Term], loss: Floats, *, confidence: float = 0.95) -> Law:
    """Fit L = sum_j exp(X_j theta_j) to losses.

    Args:
        terms: The terms; their columns have a row per loss.
        loss: [N] losses above 0.
        confidence: Of the intervals, inside (0, 1).

    Raises:
        DataError: Losses that are not finite and above 0, or not more of them than parameters; columns that do not
            vary enough to tell the parameters apart, with all trainings or with one left out.
    """
    loss = _positive("loss", loss)
    designs = [term.columns for term in terms]
    names = [name for term in terms for name in term.names]
    num = len(loss)
    if num < len(names) + 2:
        raise DataError(
            f"{num} trainings cannot tell {len(names)} parameters apart and say how sure they are",
            fix=f"train at least {len(names) + 2}, or fit a law with fewer terms",
        )
    _check_rank(terms, num)
    log_loss = np.log(loss)
    starts = [_start(designs, log_loss, shares) for shares in itertools.product(_SHARES, repeat=len(terms) - 1)]
    best = min((_solve(designs, log_loss, start) for start in starts), key=lambda found: found[0])[1]
    left_out, left_out_errors = np.empty((num, len(names))), np.empty(num)
    for index in range(num):
        kept = np.arange(num) != index
        left_out[index] = _solve([x[kept] for x in designs], log_loss[kept], best)[1]
        left_out_errors[index] = log_loss[index] - _log_law([x[index : index + 1] for x in designs], left_out[index])[0]
    log_law = _log_law(designs, best)
    return Law(
        dict(zip(names, best.tolist(), strict=True)), np.exp(log_law), log_loss - log_law, left_out, left_out_errors,
        confidence,
    )  # fmt: skip


def _positive(name: str, values: Floats) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not (np.isfinite(found).all() and (found > 0).all()):
        raise DataError(
            f"'{name}' of a scaling law is not a list of numbers above 0",
            where=name,
            fix="leave out trainings that failed",
        )
    return found


def _check_rank(terms: Sequence[Term], num: int) -> None:
    for term in terms:
        for index in (None, *range(num)):
            kept = term.columns if index is None else np.delete(term.columns, index, axis=0)
            if np.linalg.matrix_rank(kept) < len(term.names):
                raise DataError(
                    f"the trainings do not tell {', '.join(term.names)} apart"
                    + ("" if index is None else " when one of them is left out"),
                    fix="vary the sizes more, and independently of each other",
                )


def _split(designs: Sequence[Floats], theta: Floats) -> list[Floats]:
    return np.split(theta, np.cumsum([x.shape[1] for x in designs])[:-1])


def _log_law(designs: Sequence[Floats], theta: Floats) -> Floats:
    parts = np.stack([x @ part for x, part in zip(designs, _split(designs, theta), strict=True)])
    total: Floats = np.logaddexp.reduce(parts, axis=0)
    return total


def _start(designs: Sequence[Floats], log_loss: Floats, shares: Sequence[float]) -> Floats:
    """Each term by itself fitted to its share of the loss; the last one gets what the others leave."""
    left = 1.0
    found = []
    for x, share in zip(designs, (*shares, 1.0), strict=True):
        found.append(np.linalg.lstsq(x, log_loss + np.log(left * share), rcond=None)[0])
        left *= 1 - share
    return np.concatenate(found)


def _solve(designs: Sequence[Floats], log_loss: Floats, start: Floats) -> tuple[float, Floats]:
    """(cost, parameters) of the robust fit that a start leads to."""
    from scipy.optimize import least_squares

    # Centred and scaled columns make the powers of a term independent of its constant, and steps of like effect.
    scalings = [_scaling(x) for x in designs]
    scaled = [x @ scaling for x, scaling in zip(designs, scalings, strict=True)]

    def residuals(theta: Floats) -> Floats:
        return _log_law(scaled, theta) - log_loss

    def jacobian(theta: Floats) -> Floats:
        parts = np.stack([x @ part for x, part in zip(scaled, _split(scaled, theta), strict=True)])
        weights = np.exp(parts - np.logaddexp.reduce(parts, axis=0))
        found: Floats = np.concatenate([x * weight[:, None] for x, weight in zip(scaled, weights, strict=True)], axis=1)
        return found

    inner = np.concatenate(
        [np.linalg.solve(scaling, part) for scaling, part in zip(scalings, _split(designs, start), strict=True)]
    )
    low = np.concatenate([[_LOWEST, *[-_STEEPEST] * (x.shape[1] - 1)] for x in designs])
    high = np.concatenate([[-_LOWEST, *[_STEEPEST] * (x.shape[1] - 1)] for x in designs])
    found = least_squares(
        residuals, np.clip(inner, low + 1e-6, high - 1e-6), jac=jacobian, bounds=(low, high), loss="soft_l1",
        f_scale=OUTLIER, xtol=1e-10, ftol=1e-10, gtol=1e-12, max_nfev=200,
    )  # fmt: skip
    outer = [scaling @ part for scaling, part in zip(scalings, _split(scaled, found.x), strict=True)]
    return float(found.cost), np.concatenate(outer)


def _scaling(x: Floats) -> Floats:
    """Matrix S, so that x S has a first column of ones and others of mean 0 and standard deviation 1."""
    matrix = np.eye(x.shape[1])
    for column in range(1, x.shape[1]):
        spread = x[:, column].std()
        matrix[column, column] = 1 / spread
        matrix[0, column] = -x[:, column].mean() / spread
    return matrix
