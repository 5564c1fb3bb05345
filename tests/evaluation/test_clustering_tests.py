"""The tests of clustering against scipy.stats, and latents whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from plmsae.evaluation.clustering_tests import corrected, effect_intervals, permutation_p, structural_only, t_test

RNG = np.random.default_rng(0)


def test_t_p_and_d_are_those_of_scipy() -> None:
    groups = np.repeat([0, 1, 2], [30, 25, 100])
    score = RNG.random(155) + np.array([0.2, -0.3, 0.0])[groups]
    null = RNG.random(155)
    found = t_test(score - null, groups, 3)
    for group in range(3):
        x, y = score[groups == group], null[groups == group]
        reference = stats.ttest_rel(x, y)
        assert found.t[group] == pytest.approx(reference.statistic)
        assert found.p[group] == pytest.approx(reference.pvalue)
        assert found.p_greater[group] == pytest.approx(stats.ttest_rel(x, y, alternative="greater").pvalue)
        assert found.d[group] == pytest.approx((x - y).mean() / (x - y).std(ddof=1))
    assert found.d[0] > 0 > found.d[1], "the sign is kept"
    assert found.number.tolist() == [30, 25, 100]


def test_what_has_no_t() -> None:
    groups = np.array([0, 0, 0, 1, 2, 2, 4, 4])
    x = np.array([0.1 + 0.2, 0.3, 0.3, 1.0, np.nan, 0.5, 0.0, 0.0])
    found = t_test(x, groups, 5)
    assert found.number.tolist() == [3, 1, 1, 0, 2]
    assert (found.p == 1).all()
    assert (found.p_greater == 1).all()
    assert np.isnan(found.d).all()
    assert np.isnan(found.mean[3])
    assert corrected(np.array([0.01, 0.4]), 10).tolist() == [0.1, 1.0]


def test_a_tiny_p_is_not_zero() -> None:
    x = np.tile([1.0, 1.1], 20)
    found = t_test(x, np.zeros(40, dtype=int), 1)
    assert 0 < found.p_greater[0] == pytest.approx(stats.ttest_1samp(x, 0, alternative="greater").pvalue)


def test_intervals_of_d_cover_it() -> None:
    groups = np.repeat(np.arange(200), 40)
    truth = 0.8
    x = np.random.default_rng(3).normal(truth, 1.0, (8000, 1))
    low, high = effect_intervals(x, groups, 200, num_resamples=200, confidence=0.9, seed=0)
    assert 0.8 < ((low[:, 0] < truth) & (truth < high[:, 0])).mean() < 0.97
    assert (high[:, 0] - low[:, 0]).mean() == pytest.approx(2 * 1.645 * np.sqrt(1 / 40 + truth**2 / 80), rel=0.15)
    constant, _ = effect_intervals(np.full((5, 1), 0.25), np.zeros(5, int), 1, num_resamples=50, confidence=0.9, seed=0)
    assert np.isnan(constant).all()


def test_structural_only_asks_for_both_halves() -> None:
    """Four latents on 60 proteins each: structural only, both, neither, and structural with a noisy sequence."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(4), 60)
    apart = rng.normal(np.array([0.4, 0.4, 0.0, 0.4])[groups], 0.1)
    spread = np.array([0.02, 0.02, 0.02, 0.8])
    noise = rng.normal(size=(4, 60))
    noise -= noise.mean(axis=1, keepdims=True)
    sequence = np.array([0.0, 0.3, 0.0, 0.1])[groups] + spread[groups] * noise.reshape(-1)
    p_sequence, p_structure = (corrected(t_test(x, groups, 4).p, 4) for x in (sequence, apart))
    found = structural_only(p_sequence, p_structure, sequence, apart, groups, margin=0.05, alpha=0.05)
    assert found.published.tolist() == [True, False, False, True], "a noisy effect passes for none"
    assert found.tested.tolist() == [True, False, False, False]
    for latent in range(4):
        x, y = sequence[groups == latent], apart[groups == latent]
        margin = stats.ttest_1samp(x, 0.05, alternative="less").pvalue
        assert found.p_margin[latent] == pytest.approx(margin)
        both = max(margin, stats.ttest_1samp(y, 0, alternative="greater").pvalue)
        assert found.p[latent] == pytest.approx(min(4 * both, 1))
        assert found.p_difference[latent] == pytest.approx(stats.ttest_rel(y, x).pvalue)
    silent = structural_only(np.ones(1), np.zeros(1), np.zeros(9), rng.normal(0.4, 0.1, 9), np.zeros(9, int),
                             margin=0.05, alpha=0.05)  # fmt: skip
    assert silent.tested.tolist() == [True], "a sequential score that is its null on every protein is no effect"


def test_permutation_p_is_the_tail_of_pearson_three() -> None:
    groups = np.array([0, 0, 1, 1, 2, 3])
    differences = np.array([0.4, 0.3, -0.2, 0.9, 1.2, np.nan])
    variances = np.array([0.02, 0.03, 0.1, 0.2, 1.0, 1.0])
    thirds = np.array([0.001, 0.002, -0.01, -0.02, 0.0, 1.0])
    found = permutation_p(differences, variances, thirds, groups, 5)
    scales = np.sqrt([0.05, 0.3])
    reference = [
        stats.pearson3.sf(total / scale, third / scale**3)
        for total, scale, third in zip((0.7, 0.7), scales, (0.003, -0.03), strict=True)
    ]
    np.testing.assert_allclose(found[:2], reference, rtol=1e-8)
    assert found[2] == pytest.approx(stats.norm.sf(1.2))
    assert found[3:].tolist() == [1, 1], "nothing known, nothing varies"


def test_sparse_latents_are_not_taken_for_anticlustered_ones() -> None:
    """Three active residues of 100, at random: the t test against the exact null finds an effect far too often, below.

    The permutation test holds its level: of 400 latents on 30 proteins, about one in twenty has p < 0.05.
    """
    rng = np.random.default_rng(0)
    length, proteins, latents, size = 100, 30, 400, 4
    values = np.zeros((latents, proteins, length))
    values[:, :, :3] = rng.random((latents, proteins, 3))
    scores = rng.permuted(values, axis=2)[:, :, :size].mean(axis=2)
    mean = values.mean(axis=2)
    population = values.var(axis=2)
    third = ((values - mean[:, :, None]) ** 3).mean(axis=2)
    variance = population / size * (length - size) / (length - 1)
    third = third / size**2 * (length - size) * (length - 2 * size) / ((length - 1) * (length - 2))
    groups = np.repeat(np.arange(latents), proteins)
    difference = (scores - mean).reshape(-1)
    tested = t_test(difference, groups, latents)
    assert ((tested.p < 0.05) & (tested.d < 0)).mean() > 0.08
    p = permutation_p(difference, variance.reshape(-1), third.reshape(-1), groups, latents)
    assert 0.025 < (p < 0.05).mean() < 0.08
    assert 0.4 < np.median(p) < 0.65
