"""Tests of clustering per latent: paired t, Cohen's d, and two tests that a latent clusters in structure only.

With x_p = score - null of protein p, n proteins: t = mean(x) / (s / sqrt(n)) with s the sample standard deviation
(n - 1), two-sided p of Student's t with n - 1 degrees of freedom, and Cohen's d = mean(x) / s, which keeps its sign.
Where x is constant, or n < 2, there is no d and p is 1. Bonferroni multiplies p by the number of latents tested.

The t test sees the spread over proteins alone. A latent that fires on one residue of most proteins has a score of 0 on
nearly all of them, and a null a little above 0: differences that hardly vary, a large negative d, a tiny p. Yet a
permutation would give 0 nearly as often. `permutation_p` asks that question itself: the sum of the scores over proteins
under the null has known mean, variance and third moment (`clustering_pairs`), and the upper tail of the Pearson type
III distribution with these moments is its p (Kazi-Aoual et al. 1995 approximate permutation tests so).

`structural_only_published`: corrected structural p < alpha and corrected sequential p > alpha (Simon & Zou 2024). It
takes a p that is not small for evidence of no effect. `structural_only` asks for evidence of both halves:
the score of residues near in structure and apart in sequence is above its null, and the sequential score is above
its null by less than a margin (one-sided t against the margin). Both must hold at alpha, so that the p of the whole is
the larger of the two (intersection-union test, Berger 1982), times the number of latents. `p_difference` asks whether
the first effect is larger than the second on the same proteins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincc, ndtr, stdtr

from plmsae.evaluation.bootstrap import percentile_bounds, resampled_sums

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Relative to the largest difference: what a sum of equal numbers may be off by.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class TTest:
    """Tests of K latents.

    Attributes:
        number: [K] proteins.
        mean: [K] mean difference.
        t: [K] Student's t; NaN where the differences are constant.
        p: [K] two-sided, 1 where the differences are constant or fewer than two.
        p_greater: [K] one-sided, for a mean above 0.
        d: [K] Cohen's d of the differences.
    """

    number: Ints
    mean: Floats
    t: Floats
    p: Floats
    p_greater: Floats
    d: Floats


def t_test(differences: Floats, groups: Ints, num_groups: int) -> TTest:
    """One-sample t tests of differences by group, which is the paired test of what they are differences of.

    Args:
        differences: [P]; NaN is left out.
        groups: [P] latent of each, 0 to K - 1.
        num_groups: K.
    """
    some = ~np.isnan(differences)
    x, of = differences[some], groups[some]
    number = np.bincount(of, minlength=num_groups)
    mean = np.bincount(of, x, minlength=num_groups) / np.maximum(number, 1)
    squares = np.bincount(of, (x - mean[of]) ** 2, minlength=num_groups)
    s = np.sqrt(squares / np.maximum(number - 1, 1))
    largest = np.zeros(num_groups)
    np.maximum.at(largest, of, np.abs(x))
    varies = (number > 1) & (s > _CONSTANT * largest)
    d = np.where(varies, mean / np.where(varies, s, 1.0), np.nan)
    t = d * np.sqrt(number)
    freedom, known = np.maximum(number - 1, 1).astype(np.float64), np.where(varies, t, 0.0)
    p = np.where(varies, 2 * stdtr(freedom, -np.abs(known)), 1.0)
    # From the upper tail itself: 1 minus the lower one is 0 long before p is.
    greater = np.where(varies, stdtr(freedom, -known), 1.0)
    mean = np.where(number > 0, mean, np.nan)
    return TTest(number, mean, t, p, greater, d)


def permutation_p(differences: Floats, variances: Floats, thirds: Floats, groups: Ints, num_groups: int) -> Floats:
    """[K] p of clustering, one-sided, from the moments of the permutation null.

    Args:
        differences: [P] score minus the mean of its null; NaN is left out.
        variances: [P] variance of the score under the null.
        thirds: [P] its third central moment.
        groups: [P] latent of each.
        num_groups: K.

    Returns:
        1 where the null does not vary.
    """
    some = ~np.isnan(differences)
    total, variance, third = (
        np.bincount(groups[some], each[some], minlength=num_groups) for each in (differences, variances, thirds)
    )
    varies = variance > 0
    scale = np.sqrt(np.where(varies, variance, 1.0))
    z, skew = np.where(varies, total / scale, 0.0), np.where(varies, third / scale**3, 0.0)
    # Below this the gamma distribution has so large a shape that it is the normal one.
    curved = np.abs(skew) > 1e-4
    shape = 4.0 / np.where(curved, skew, 1.0) ** 2
    place = np.maximum(shape + np.sign(skew) * z * np.sqrt(shape), 0.0)
    tail = np.where(skew > 0, gammaincc(shape, place), gammainc(shape, place))
    return np.where(varies, np.where(curved, tail, ndtr(-z)), 1.0)


def corrected(p: Floats, num_tests: int) -> Floats:
    """Bonferroni: min(1, p times the number of tests)."""
    return np.minimum(p * num_tests, 1.0)


def effect_intervals(
    differences: Floats, groups: Ints, num_groups: int, *, num_resamples: int, confidence: float, seed: int
) -> tuple[Floats, Floats]:
    """Percentile bootstrap intervals of Cohen's d over the proteins of each latent.

    Args:
        differences: [P, S]; NaN is left out.
        groups: [P] latent of each row, ascending, 0 to K - 1.
        num_groups: K.
        num_resamples: Resamples; latents with equally many proteins share them.
        confidence: Coverage.
        seed: Seed.

    Returns:
        Lower and upper bounds [K, S]; NaN where no resample has a d.
    """
    some = ~np.isnan(differences)
    x = np.where(some, differences, 0.0)
    starts = np.searchsorted(groups, np.arange(num_groups + 1))
    numbers = np.diff(starts)
    low = np.full((num_groups, differences.shape[1]), np.nan)
    high = low.copy()
    # About the mean of each latent, so that squares do not cancel.
    total = np.stack([np.bincount(groups, column, minlength=num_groups) for column in x.T], axis=1)
    counted = np.stack([np.bincount(groups, column, minlength=num_groups) for column in some.T.astype(float)], axis=1)
    center = total / np.maximum(counted, 1)
    shifted = np.where(some, x - center[groups], 0.0)
    at_once = 128
    for number in np.unique(numbers[numbers > 1]):
        every = np.flatnonzero(numbers == number)
        for begin in range(0, len(every), at_once):
            latents = every[begin : begin + at_once]
            rows = starts[latents][:, None] + np.arange(number)
            values = shifted[rows]  # [k, n, S]
            parts = np.stack([some[rows], values, values**2], axis=-1).astype(np.float64)
            sums = resampled_sums(parts.transpose(1, 0, 2, 3), num_resamples, seed)  # [B, k, S, 3]
            n, first, second = sums[..., 0], sums[..., 1], sums[..., 2]
            mean = first / np.maximum(n, 1)
            s = np.sqrt(np.maximum(second - n * mean**2, 0.0) / np.maximum(n - 1, 1))
            largest = np.abs(values).max(axis=1)
            varies = (n > 1) & (s > 1e-6 * largest)
            d = np.where(varies, (mean + center[latents]) / np.where(varies, s, 1.0), np.nan)
            low[latents], high[latents] = percentile_bounds(d, confidence)
    return low, high


@dataclass(frozen=True)
class StructuralOnly:
    """Which of K latents cluster in structure only, by both definitions.

    Attributes:
        published: [K] by the published rule.
        tested: [K] by the intersection-union test.
        p: [K] of that test, corrected.
        p_margin: [K] one-sided, that the sequential effect is below the margin; not corrected.
        p_difference: [K] two-sided, structural (apart) minus sequential effect; not corrected.
        difference: [K] mean of that difference.
    """

    published: NDArray[np.bool_]
    tested: NDArray[np.bool_]
    p: Floats
    p_margin: Floats
    p_difference: Floats
    difference: Floats


def structural_only(
    p_sequence: Floats,
    p_structure: Floats,
    sequence: Floats,
    apart: Floats,
    groups: Ints,
    *,
    margin: float,
    alpha: float,
) -> StructuralOnly:
    """Both tests.

    Args:
        p_sequence: [K] published sequential p, corrected.
        p_structure: [K] published structural p, corrected.
        sequence: [P] sequential score minus null.
        apart: [P] score of residues near in structure and apart in sequence, minus null.
        groups: [P] latent of each.
        margin: The largest sequential effect that counts as none, in activations divided by the latent's maximum.
        alpha: Level.
    """
    num_groups = len(p_sequence)
    structural = t_test(apart, groups, num_groups)
    below = t_test(margin - sequence, groups, num_groups)
    difference = t_test(apart - sequence, groups, num_groups)
    # A sequential score that never differs from its null by a margin has no t, but no effect either.
    constant = np.isnan(below.d) & (below.number > 1) & (below.mean > 0)
    p_margin = np.where(constant, 0.0, below.p_greater)
    p = corrected(np.maximum(structural.p_greater, p_margin), num_groups)
    return StructuralOnly(
        published=(p_structure < alpha) & (p_sequence > alpha),
        tested=p < alpha,
        p=p,
        p_margin=p_margin,
        p_difference=difference.p,
        difference=difference.mean,
    )
