from __future__ import annotations

import numpy as np
import pytest

from plmsae.evaluation import concept_compare
from plmsae.evaluation.concept_compare import Resampling, Tested, difference, mean_interval, score_rows
from plmsae.evaluation.counts import RowCounts
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.scores import Scores

HOW = Resampling(num_resamples=400, confidence=0.9, seed=0)


def labels_of(num_proteins: int) -> Labels:
    """Two residues per protein, the first of them an instance of the one concept."""
    rows = np.arange(num_proteins)
    return Labels.build(
        lengths=np.full(num_proteins, 2),
        rows=rows,
        starts=np.zeros_like(rows),
        ends=np.ones_like(rows),
        paired=np.zeros(num_proteins, dtype=bool),
        concepts=np.stack([np.zeros_like(rows), np.full_like(rows, -1)], axis=1),
        num_concepts=1,
    )


def rows_of(found: np.ndarray, wrong: np.ndarray) -> RowCounts:
    return RowCounts(true_positives=found[:, None], hits=found[:, None], active=(found + wrong)[:, None])


def test_a_perfect_predictor_has_no_uncertainty() -> None:
    ones = np.ones(6, dtype=np.int64)
    tested = score_rows(rows_of(ones, 0 * ones), labels_of(6), np.arange(6), np.array([False]), HOW)
    assert tested.scores.f1.tolist() == [1.0]
    assert (tested.samples == 1.0).all()


def test_the_spread_is_that_of_drawing_proteins() -> None:
    """Right in half of 40 proteins and silent in the others: recall is a binomial share, precision 1."""
    found = np.array([1, 0] * 20)
    tested = score_rows(rows_of(found, 0 * found), labels_of(40), np.arange(40), np.array([False]), HOW)
    assert tested.scores.f1[0] == pytest.approx(2 * 0.5 / 1.5)
    recall = tested.samples[:, 0] / (2 - tested.samples[:, 0])
    assert recall.mean() == pytest.approx(0.5, abs=0.02)
    assert recall.std() == pytest.approx(np.sqrt(0.25 / 40), rel=0.15)


def test_rows_of_one_protein_are_drawn_together() -> None:
    found = np.array([1, 0] * 20)
    tested = score_rows(rows_of(found, 0 * found), labels_of(40), np.repeat(np.arange(20), 2), np.array([False]), HOW)
    # Every protein has one row that is found and one that is not.
    np.testing.assert_allclose(tested.samples, 2 * 0.5 / 1.5)


def test_few_predictors_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    hits = generator.integers(0, 2, size=(12, 5))
    rows = RowCounts(true_positives=hits, hits=hits, active=hits + generator.integers(0, 2, size=(12, 5)))

    def tested() -> Tested:
        concepts = np.zeros(5, dtype=np.int64)
        return score_rows(rows, labels_of(12), np.arange(12) // 2, np.array([False]), HOW, concepts)

    whole = tested()
    monkeypatch.setattr(concept_compare, "PREDICTORS_AT_ONCE", 2)
    parts = tested()
    assert parts.samples.shape == (HOW.num_resamples, 5)
    np.testing.assert_array_equal(parts.samples, whole.samples)
    for name in ("precision", "recall", "f1"):
        np.testing.assert_array_equal(getattr(parts.scores, name), getattr(whole.scores, name))


def test_a_constant_gain_is_certain_although_both_scores_are_not() -> None:
    samples = np.random.default_rng(0).uniform(0.2, 0.6, size=(100, 3))

    def tested(shift: float) -> Tested:
        f1 = np.array([0.3, 0.4, 0.5]) + shift
        return Tested(Scores(precision=f1, recall=f1, f1=f1), samples + shift)

    found = difference(tested(0.1), tested(0.0), 0.9)
    np.testing.assert_allclose([found.low, found.high], 0.1)
    assert (found.mean.value, found.mean.low, found.mean.high) == pytest.approx((0.1, 0.1, 0.1))
    alone = mean_interval(tested(0.0), 0.9)
    assert alone.low < 0.39 < 0.41 < alone.high


def test_a_concept_that_a_resample_lacks_leaves_its_mean() -> None:
    f1 = np.array([0.2, 0.6])
    samples = np.array([[0.2, np.nan], [0.2, 0.6], [np.nan, np.nan], [0.2, np.nan]])
    interval = mean_interval(Tested(Scores(f1, f1, f1), samples), 0.999)
    assert interval.value == pytest.approx(0.4)
    assert interval.low == pytest.approx(0.2, abs=1e-3)
    assert interval.high == pytest.approx(0.4, abs=1e-3)
