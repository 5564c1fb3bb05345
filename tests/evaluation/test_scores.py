from __future__ import annotations

import numpy as np
import pytest

from plmsae.evaluation.counts import Counts
from plmsae.evaluation.scores import NO_LATENT, best_concepts, confirmed_pairs, f1_of, score, select


def test_a_concept_that_is_missed_scores_zero() -> None:
    found = score(*(np.array(value) for value in (0, 0, 7, 5, 2, False)))
    assert (found.precision, found.recall, found.f1) == (0, 0, 0)


def test_a_predictor_that_is_silent_scores_zero() -> None:
    assert score(*(np.array(value) for value in (0, 0, 0, 5, 2, True))).f1 == 0


def test_a_concept_without_instances_has_no_score() -> None:
    found = score(*(np.array(value) for value in (0, 0, 7, 0, 0, False)))
    assert np.isnan(found.f1)
    assert np.isnan(found.recall)


def test_recall_over_residues_or_instances() -> None:
    # 3 of 4 labelled residues in 1 of 2 instances, 6 residues predicted.
    by_instance = score(*(np.array(value) for value in (3, 1, 6, 4, 2, False)))
    by_residue = score(*(np.array(value) for value in (3, 1, 6, 4, 2, True)))
    assert (by_instance.recall, by_residue.recall) == (0.5, 0.75)
    assert by_instance.f1 == pytest.approx(0.5)
    assert by_residue.f1 == pytest.approx(2 * 0.5 * 0.75 / 1.25)


def test_selection_prefers_the_lowest_threshold_then_the_lowest_latent() -> None:
    f1 = np.zeros((3, 2, 3))  # concept, threshold, latent
    f1[0, 1, 0] = f1[0, 0, 2] = 0.4
    f1[1, 0, 1] = f1[1, 0, 2] = 0.6
    chosen = select(f1)
    assert chosen.latents.tolist() == [2, 1, NO_LATENT]
    assert chosen.thresholds.tolist() == [0, 0, 0]
    assert chosen.f1.tolist() == [0.4, 0.6, 0.0]


def test_pairs_carry_their_threshold_from_validation_to_test() -> None:
    valid, test = np.zeros((2, 2, 2)), np.zeros((2, 2, 2))
    valid[0, 0, 0], valid[0, 1, 0] = 0.7, 0.6
    test[0, 0, 0], test[0, 1, 0] = 0.4, 0.9  # good on test only at the threshold that was not selected
    valid[1, 1, 0] = valid[1, 1, 1] = test[1, 1, 0] = test[1, 1, 1] = 0.8
    pairs = confirmed_pairs(valid, test, 0.5)
    assert (pairs.num_pairs, pairs.num_latents, pairs.num_concepts) == (2, 2, 1)


def test_best_concepts_of_each_latent() -> None:
    valid, test = np.zeros((3, 2, 2)), np.zeros((3, 2, 2))
    valid[0, 0, 0], valid[1, 1, 0], valid[2, 0, 0] = 0.2, 0.9, 0.5
    test[1, 1, 0], test[2, 0, 0], test[2, 1, 0] = 0.8, 0.3, 0.99
    found = best_concepts(valid, test, 2)
    assert found["latent"].tolist() == [0, 0]
    assert found["rank"].tolist() == [1, 2]
    assert found["concept"].tolist() == [1, 2]
    assert found["threshold"].tolist() == [1, 0]
    assert found["f1_valid"].tolist() == [0.9, 0.5]
    assert found["f1_test"].tolist() == [0.8, 0.3]


def test_f1_of_counts_is_the_f1_of_precision_and_recall() -> None:
    generator = np.random.default_rng(0)
    active = generator.integers(0, 50, (5, 7))
    true_positives = generator.integers(0, active + 1, (3, 5, 7)).astype(np.int32)
    hits = np.minimum(true_positives, generator.integers(1, 9, (3, 5, 7))).astype(np.int32)
    totals = np.array([60, 0, 80]), np.array([9, 0, 9]), np.array([True, True, False])
    expected = score(true_positives, hits, active, *(each[:, None, None] for each in totals)).f1
    found = f1_of(Counts(true_positives, hits, active), *totals)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert np.isnan(found[1]).all()
    assert (found[0][true_positives[0] == 0] == 0).all()
