"""Average precision from counts by level: scikit-learn's on the same residues, by hand, and resampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import average_precision_score

from plmsae.evaluation import average_precision
from plmsae.evaluation.average_precision import LevelCounter, groups_of, letter_average_precision, levels_of
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.residue_letters import LETTERS, letter_codes
from plmsae.evaluation.scores import NO_LATENT


def labels_of(lengths: list[int], labelled: np.ndarray[Any, Any]) -> Labels:
    """Labels [R, C], every labelled residue an annotation of its own."""
    residue, concept = np.nonzero(labelled)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.searchsorted(starts, residue, side="right") - 1
    order = np.argsort(rows, kind="stable")
    residue, concept, rows = residue[order], concept[order], rows[order]
    return Labels.build(
        lengths=np.array(lengths),
        rows=rows,
        starts=residue - starts[rows],
        ends=residue - starts[rows] + 1,
        paired=np.zeros(len(rows), dtype=bool),
        concepts=np.stack([concept, np.full(len(rows), -1)], axis=1),
        num_concepts=labelled.shape[1],
    )


def counted(dense: Any, labels: Labels, units: list[int], groups: Any, batches: list[int], **how: int) -> Any:
    counter = LevelCounter(np.array(units), np.asarray(groups))
    matrix = sparse.csr_matrix(dense.astype(np.float32))
    for first, last in zip(batches, [*batches[1:], labels.num_rows]):
        low, high = labels.row_starts[first], labels.row_starts[last]
        counter.add(counter.read(matrix[low:high], labels.batch(first, last), first))
    return counter.result(labels, **{"num_resamples": 1, "seed": 0, **how})


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_it_is_that_of_scikit_learn(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    size = sum(lengths)
    # Values of at most 12 significant bits stay what they are; few of them, so that there are ties, also at 0.
    value = st.sampled_from([0.0, 0.0, 0.0, 2.0**-9, 0.15625, 0.5, 0.50048828125, 1.0, 1.25])
    dense = np.array(data.draw(st.lists(value, min_size=3 * size, max_size=3 * size))).reshape(size, 3)
    marks = st.lists(st.booleans(), min_size=2 * size, max_size=2 * size)
    labelled = np.array(data.draw(marks)).reshape(size, 2)
    labelled[data.draw(st.integers(0, size - 1))] = True
    units = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=2))
    cut = data.draw(st.integers(0, len(lengths) - 1))
    batches = [0] if cut == 0 else [0, cut]
    found = counted(dense, labels_of(lengths, labelled), units, np.arange(len(lengths)), batches)
    expected = [average_precision_score(labelled[:, c], dense[:, unit]) for c, unit in enumerate(units)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)


def test_other_values_are_off_by_what_rounding_ties() -> None:
    generator = np.random.default_rng(0)
    lengths, size = [500] * 8, 4000
    labelled = generator.random((size, 2)) < [0.02, 0.4]
    dense = np.maximum(generator.normal(size=(size, 2)) + labelled - 0.3, 0) / 4
    labels = labels_of(lengths, labelled)
    found = counted(dense, labels, [0, 1], np.arange(8), [0, 3, 4], num_resamples=20, seed=5)
    expected = [average_precision_score(labelled[:, c], dense[:, c].astype(np.float32)) for c in range(2)]
    np.testing.assert_allclose(found.values, expected, atol=2e-4)
    # Resamples come from levels eight to an octave: what these blur is taken off.
    draws = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=20).repeat(500, axis=1)
    resampled = [
        [average_precision_score(labelled[:, c], dense[:, c], sample_weight=w) for c in range(2)] for w in draws
    ]
    np.testing.assert_allclose(found.samples, resampled, atol=0.005)
    assert np.std(resampled, axis=0).min() > 0.01
    alone = counted(dense, labels, [0, 1], np.zeros(8, dtype=np.int64), [0])
    np.testing.assert_allclose(alone.samples[0], found.values, rtol=1e-9)
    assert (np.array(expected) > 1.5 * labelled.mean(axis=0)).all()


def test_levels_ascend_with_activations_and_tie_what_rounding_parts() -> None:
    values = np.concatenate([[-1.0, 0.0], np.geomspace(2.0**-11, 15.9, 4000)]).astype(np.float32)
    levels = levels_of(values)
    assert levels[:2].tolist() == [0, 0]
    assert (np.diff(levels[2:]) >= 0).all()
    assert len(np.unique(levels[2:])) == 4000  # 0.26 % apart
    one = np.float32(1)
    assert len(set(levels_of(np.array([one - 3e-6, one, one + 3e-6], dtype=np.float32)))) == 1
    ends = levels_of(np.array([1e-30, 2.0**-12, 1e30, 16.0], dtype=np.float32))
    assert ends.tolist() == [1, 1, average_precision.NUM_LEVELS - 1, average_precision.NUM_LEVELS - 1]


def test_a_concept_without_a_unit_has_what_guessing_gives() -> None:
    labelled = np.array([[1, 0], [0, 1], [0, 0], [0, 0], [1, 0]], dtype=bool)
    found = counted(np.eye(5), labels_of([3, 2], labelled), [NO_LATENT, 1], [0, 1], [0])
    np.testing.assert_allclose(found.values, [2 / 5, 1.0])


def test_resamples_weigh_whole_proteins() -> None:
    """Powers of two have a level each also where levels are coarse, so that resamples are exact."""
    generator = np.random.default_rng(1)
    lengths, groups = [30, 20, 40, 10, 25], np.array([0, 1, 1, 2, 3])
    size = sum(lengths)
    labelled = generator.random((size, 1)) < 0.3
    dense = generator.choice([0.0, 0.125, 0.25, 0.5, 1.0], size=(size, 1)) * (generator.random((size, 1)) < 0.7)
    found = counted(dense, labels_of(lengths, labelled), [0], groups, [0, 2], num_resamples=20, seed=7)
    draws = np.random.default_rng(7).multinomial(4, np.full(4, 0.25), size=20)
    owner = np.repeat(groups, lengths)
    expected = [average_precision_score(labelled[:, 0], dense[:, 0], sample_weight=draw[owner]) for draw in draws]
    np.testing.assert_allclose(found.samples[:, 0], expected, rtol=1e-9)


def test_a_resample_without_a_labelled_residue_has_none() -> None:
    labelled = np.array([[1], [0], [0], [0]], dtype=bool)
    found = counted(np.eye(4), labels_of([2, 2], labelled), [0], [0, 1], [0], num_resamples=50, seed=0)
    draws = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=50)
    assert np.isnan(found.samples[:, 0]).tolist() == (draws[:, 0] == 0).tolist()
    assert 0 < np.isnan(found.samples).sum() < 50


def test_many_proteins_are_resampled_in_groups_of_equal_size(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = np.array([0, 0, 1, 2, 2, 3])
    assert groups_of(owners, 0) is owners
    monkeypatch.setattr(average_precision, "MOST_GROUPS", 10)
    owners = np.repeat(np.arange(35), 2)
    groups = groups_of(owners, 3)
    assert (groups[::2] == groups[1::2]).all(), "windows of a protein stay together"
    assert sorted(np.bincount(groups[::2])) == [3] * 5 + [4] * 5
    assert (groups != groups_of(owners, 4)).any()


def test_letters_are_ranked_by_their_share_on_validation() -> None:
    """Validation AAAC CC: A is labelled in 1 of 3, C in 2 of 3. Test CA CAG: C comes first, then A; G is new."""
    valid = labels_of([4, 2], np.array([[1], [0], [0], [1], [1], [0]], dtype=bool))
    test = labels_of([2, 3], np.array([[1], [0], [0], [1], [0]], dtype=bool))
    codes = letter_codes(["AAAC", "CC"]), letter_codes(["CA", "CAG"])
    found = letter_average_precision(valid, codes[0], test, codes[1], np.array([0, 1]), 5, 0)
    # C: 1 of 2 at recall 1/2; with A: 2 of 4 at recall 1.
    np.testing.assert_allclose(found.values, [0.5 * 1 / 2 + 0.5 * 2 / 4])
    score = np.array([2 / 3, 1 / 3, 2 / 3, 1 / 3, 0.0])
    truth, owner = np.array([1, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 1])
    draws = np.random.default_rng(0).multinomial(2, [0.5, 0.5], size=5)
    expected = [average_precision_score(truth, score, sample_weight=draw[owner]) for draw in draws]
    np.testing.assert_allclose(found.samples[:, 0], expected)


def test_letters_that_rank_alike_are_tied_and_others_are_one_letter() -> None:
    """A and C are labelled in half of the cases on validation, B (no residue) in all: B first, then A and C as one."""
    valid = labels_of([5], np.array([[1], [0], [1], [0], [1]], dtype=bool))
    test = labels_of([4], np.array([[1], [0], [0], [1]], dtype=bool))
    assert letter_codes(["ACB"]).tolist() == [0, 1, -1]
    assert LETTERS[:2] == "AC"
    found = letter_average_precision(valid, letter_codes(["AACCB"]), test, letter_codes(["ACUB"]), np.array([0]), 1, 0)
    # U counts as B does: first tie U, B (1 of 2), then A, C (2 of 4).
    np.testing.assert_allclose(found.values, [0.5 * 1 / 2 + 0.5 * 2 / 4])
