from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plmsae.errors import UserError
from plmsae.evaluation.bootstrap import Interval, group_sums, intervals, percentile_bounds, resampled_sums


def test_every_resample_holds_as_many_proteins_as_there_are() -> None:
    sums = resampled_sums(np.ones((17, 2)), num_resamples=300, seed=3)
    assert sums.shape == (300, 2)
    assert (sums == 17).all()


def test_resamples_are_whole_proteins() -> None:
    """With protein p contributing 10**p, the digits of a sum tell how often each was drawn."""
    sums = resampled_sums(10.0 ** np.arange(4), num_resamples=500, seed=0).astype(int)
    digits = np.stack([sums // 10**place % 10 for place in range(4)], axis=1)
    assert (digits.sum(axis=1) == 4).all()
    assert np.abs(digits.mean(axis=0) - 1).max() < 0.2


def test_equal_seeds_draw_the_same_proteins_for_other_quantities() -> None:
    values = np.random.default_rng(1).normal(size=40)
    both = resampled_sums(np.stack([values, 3 * values], axis=1), 600, seed=7)
    alone = resampled_sums(values, 600, seed=7)
    np.testing.assert_allclose(both[:, 0], alone)
    np.testing.assert_allclose(both[:, 1], 3 * alone)
    assert not np.allclose(alone, resampled_sums(values, 600, seed=8))


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(5).gamma(2.0, size=200)
    sums = np.stack([values, np.ones_like(values)], axis=1)
    ours = intervals(sums, lambda s: {"mean": s[:, 0] / s[:, 1]}, num_resamples=4000, confidence=0.9, seed=0)["mean"]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_a_paired_difference_is_tighter_than_its_parts() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(scale=5, size=100)
    sums = np.stack([base, base + 1 + rng.normal(scale=0.1, size=100), np.ones(100)], axis=1)
    found = intervals(
        sums,
        lambda s: {"a": s[:, 0] / s[:, 2], "difference": (s[:, 1] - s[:, 0]) / s[:, 2]},
        num_resamples=500,
        confidence=0.95,
        seed=0,
    )
    assert found["difference"].high - found["difference"].low < 0.1 < found["a"].high - found["a"].low
    assert found["difference"].low < 1 < found["difference"].high


def test_undefined_resamples_are_left_out_and_undefined_statistics_stay_nan() -> None:
    samples = np.array([[0.0, np.nan], [np.nan, np.nan], [1.0, np.nan]])
    low, high = percentile_bounds(samples, 0.5)
    assert (low[0], high[0]) == (0.25, 0.75)
    assert np.isnan([low[1], high[1]]).all()


def test_bounds_are_the_percentiles() -> None:
    low, high = percentile_bounds(np.arange(101.0), 0.9)
    assert (float(low), float(high)) == (pytest.approx(5), pytest.approx(95))


@pytest.mark.parametrize(("sums", "count"), [(np.zeros((0, 2)), 10), (np.zeros((3, 2)), 0)])
def test_nothing_to_resample_is_refused(sums: np.ndarray, count: int) -> None:
    with pytest.raises(UserError, match="bootstrap needs"):
        resampled_sums(sums, count, 0)


def test_group_sums() -> None:
    assert group_sums(np.array([[1, 2], [3, 4], [5, 6]]), np.array([1, 0, 1])).tolist() == [[3, 4], [6, 8]]


def test_bounds_that_round_to_the_value_are_left_out() -> None:
    assert Interval(32.0, 31.999, 32.001).short(1) == "32.0"
    assert Interval(32.0, 31.9, 32.001).short(1) == "32.0 [31.9, 32.0]"
