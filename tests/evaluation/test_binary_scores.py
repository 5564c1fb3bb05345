"""Scores of binary predictions against scikit-learn, by hand, and their intervals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from plmsae.evaluation import binary_scores
from plmsae.evaluation.binary_scores import Sampled, exact_scores, sampled_scores, threshold_scores
from plmsae.evaluation.bootstrap import Interval


def score_intervals(
    scores: Any, targets: Any, owners: Any, *, num_resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    found = sampled_scores(scores, targets, owners, num_resamples=num_resamples, seed=seed)
    return {name: found.interval(name, confidence) for name in binary_scores.SCORES}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(0, 2))
def test_scores_are_those_of_scikit_learn(seed: int, size: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.random(size) < 0.4
    y[0], y[1] = True, False
    scores = np.round(rng.normal(y * 0.7 - 0.3, 1.0), digits)  # rounded: many ties
    found = exact_scores(scores, y)
    marked = scores > 0
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(y, scores))
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(y, scores))
    assert found["precision"] == pytest.approx(metrics.precision_score(y, marked, zero_division=0))
    assert found["recall"] == pytest.approx(metrics.recall_score(y, marked))
    assert found["f1"] == pytest.approx(metrics.f1_score(y, marked))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, marked))
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(y, marked))
    # The order alone matters for ranking, and the opposite order is the opposite AUROC.
    assert exact_scores(np.exp(scores), y)["average_precision"] == pytest.approx(found["average_precision"])
    assert exact_scores(-scores, y)["auroc"] == pytest.approx(1 - found["auroc"])


def test_by_hand() -> None:
    # Pairs (2, -1), (2, 1), (0.5, -1) are in order, (0.5, 1) is not: 3 of 4. From above: + - + -.
    found = exact_scores(np.array([2.0, 0.5, -1.0, 1.0]), np.array([True, True, False, False]))
    assert found["auroc"] == 0.75
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert (found["precision"], found["recall"], found["balanced_accuracy"]) == pytest.approx((2 / 3, 1.0, 0.75))


def test_a_class_without_examples_has_no_score_and_a_silent_probe_scores_zero() -> None:
    found = threshold_scores(0, 0, 5, 5)
    assert (found["f1"], found["precision"], found["mcc"], found["balanced_accuracy"]) == (0, 0, 0, 0.5)
    nothing = threshold_scores(0, 3, 0, 5)
    assert np.isnan([nothing["f1"], nothing["recall"], nothing["balanced_accuracy"]]).all()
    assert np.isnan(list(exact_scores(np.array([1.0, 2.0]), np.array([False, False])).values())[:2]).all()


def test_intervals_are_those_of_resampled_examples() -> None:
    """Against the slow way: draw proteins, put their examples together, score them with scikit-learn."""
    rng = np.random.default_rng(3)
    owners = np.repeat(np.arange(40), 25)
    y = rng.random(1000) < rng.beta(1, 4, 40)[owners]
    scores = rng.normal(y * 1.2 - 0.8 + rng.normal(0, 0.6, 40)[owners], 1.0)
    found = score_intervals(scores, y, owners, num_resamples=400, confidence=0.9, seed=0)
    exact = exact_scores(scores, y)
    slow: dict[str, list[float]] = {name: [] for name in binary_scores.SCORES}
    places = owners.reshape(40, 25) * 25 + np.arange(25)
    for _ in range(400):
        rows = places[rng.integers(0, 40, 40)].ravel()
        for name, value in exact_scores(scores[rows], y[rows]).items():
            slow[name].append(value)
    for name, interval in found.items():
        assert interval.value == exact[name]
        low, high = np.percentile(slow[name], [5, 95])
        width = high - low
        assert interval.low == pytest.approx(low, abs=0.15 * width)
        assert interval.high == pytest.approx(high, abs=0.15 * width)


def test_bins_of_few_distinct_scores_are_exact_and_paired() -> None:
    rng = np.random.default_rng(0)
    owners, y = np.repeat(np.arange(30), 4), rng.random(120) < 0.5
    scores = rng.integers(-3, 4, 120).astype(float)
    first = score_intervals(scores, y, owners, num_resamples=100, confidence=0.9, seed=1)
    second = score_intervals(3 * scores, y, owners + 7, num_resamples=100, confidence=0.9, seed=1)
    assert first == second, "neither the scale nor the numbers of the proteins matter"
    perfect = score_intervals(np.where(y, 1.0, -1.0), y, owners, num_resamples=100, confidence=0.9, seed=1)
    assert [number for each in perfect.values() for number in (each.value, each.low, each.high)] == pytest.approx(
        [1] * 21
    )


def test_many_distinct_scores_share_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    owners, y = np.repeat(np.arange(50), 40), rng.random(2000) < 0.3
    scores = rng.normal(y, 1.0)
    coarse = score_intervals(scores, y, owners, num_resamples=300, confidence=0.95, seed=0)
    monkeypatch.setattr(binary_scores, "BINS", 10**9)
    fine = score_intervals(scores, y, owners, num_resamples=300, confidence=0.95, seed=0)
    for name in binary_scores.SCORES:
        assert coarse[name].value == fine[name].value
        assert coarse[name].low == pytest.approx(fine[name].low, abs=2e-3)
        assert coarse[name].high == pytest.approx(fine[name].high, abs=2e-3)


def test_differences_are_paired() -> None:
    """The same predictor twice differs by nothing, and a little better one by less than either varies."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(40), 10)
    y = rng.random(400) < rng.beta(2, 3, 40)[owners]
    scores = rng.normal(y, 1.5)

    def sampled(values: Any) -> Sampled:
        return sampled_scores(values, y, owners, num_resamples=200, seed=0)

    first, second = sampled(scores), sampled(scores + 0.3 * y)
    same = first.minus(sampled(2 * scores), "auroc", 0.95)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    gain, width = second.minus(first, "auroc", 0.95), first.interval("auroc", 0.95)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.high - gain.low < (width.high - width.low) / 3
