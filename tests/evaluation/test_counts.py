"""One-pass counts against a slow, obvious implementation on generated annotations and activations."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from plmsae.errors import DataError
from plmsae.evaluation import counts
from plmsae.evaluation.counts import ConceptCounter, count_rows
from plmsae.evaluation.residue_labels import Labels, sums_by_row

NUM_CONCEPTS = 3
NUM_LATENTS = 3
THRESHOLDS = (0.0, 0.15, 0.5, 0.6, 0.8)


@dataclass
class Annotation:
    row: int
    start: int
    end: int
    paired: bool
    concepts: tuple[int, int]

    def positions(self) -> set[int]:
        return {self.start, self.end - 1} if self.paired else set(range(self.start, self.end))


@dataclass
class Case:
    lengths: list[int]
    annotations: list[Annotation]
    activations: list[list[list[float]]]  # [row][position][latent]

    def labels(self) -> Labels:
        items = self.annotations
        return Labels.build(
            lengths=np.array(self.lengths),
            rows=np.array([item.row for item in items], dtype=np.int64),
            starts=np.array([item.start for item in items], dtype=np.int64),
            ends=np.array([item.end for item in items], dtype=np.int64),
            paired=np.array([item.paired for item in items], dtype=bool),
            concepts=np.array([item.concepts for item in items], dtype=np.int64).reshape(-1, 2),
            num_concepts=NUM_CONCEPTS,
        )

    def matrix(self, first: int = 0, last: int | None = None) -> sparse.csr_matrix:
        rows = [position for row in self.activations[first:last] for position in row]
        return sparse.csr_matrix(np.array(rows, dtype=np.float32).reshape(-1, NUM_LATENTS))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    annotations = []
    for _ in range(draw(st.integers(0, 9))):
        row = draw(st.integers(0, len(lengths) - 1))
        start = draw(st.integers(0, lengths[row] - 1))
        end = draw(st.integers(start + 1, lengths[row]))
        concepts = draw(st.sampled_from([(0, -1), (0, 1), (0, 2), (2, -1), (-1, -1), (-1, 1)]))
        annotations.append(Annotation(row, start, end, draw(st.booleans()), concepts))
    # Multiples of 0.05 meet thresholds exactly, which must not count as active.
    value = st.one_of(st.just(0.0), st.integers(0, 24).map(lambda number: number / 20))
    position = st.lists(value, min_size=NUM_LATENTS, max_size=NUM_LATENTS)
    activations = [draw(st.lists(position, min_size=length, max_size=length)) for length in lengths]
    return Case(lengths, annotations, activations)


def slow_counts(case: Case, concept: int, latent: int, threshold: float) -> tuple[int, int, int]:
    """True positives, hits and active residues, one residue at a time."""
    true_positives = hits = active = 0
    for row, length in enumerate(case.lengths):
        for position in range(length):
            if np.float32(case.activations[row][position][latent]) > np.float32(threshold):
                active += 1
                covered = [a for a in case.annotations if a.row == row and position in a.positions()]
                true_positives += any(concept in a.concepts for a in covered)
    for annotation in case.annotations:
        if concept in annotation.concepts:
            values = [case.activations[annotation.row][position][latent] for position in annotation.positions()]
            hits += any(np.float32(value) > np.float32(threshold) for value in values)
    return true_positives, hits, active


@given(
    cases(),
    st.integers(0, 3),
    st.sampled_from([1, 5, counts.RESIDUES_AT_ONCE]),
    st.sampled_from([THRESHOLDS, (0.15, 0.5)]),
    st.sampled_from([(1, 1), (4, 2), (9, 3), (counts.ROWS_AT_ONCE, counts.INSTANCES_AT_ONCE)]),
)
@settings(max_examples=150, deadline=None)
def test_counts_equal_the_slow_ones_whatever_the_pieces(
    case: Case, cut: int, at_once: int, thresholds: tuple[float, ...], pieces: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts, "RESIDUES_AT_ONCE", at_once)
        patch.setattr(counts, "ROWS_AT_ONCE", pieces[0])
        patch.setattr(counts, "INSTANCES_AT_ONCE", pieces[1])
        _check_counts(case, cut, thresholds)


def _check_counts(case: Case, cut: int, thresholds: tuple[float, ...]) -> None:
    labels = case.labels()
    cut = min(cut, len(case.lengths))
    counter = ConceptCounter(NUM_CONCEPTS, NUM_LATENTS, thresholds)
    for first, last in ((0, cut), (cut, len(case.lengths))):
        if first < last:
            counter.add(case.matrix(first, last), labels.batch(first, last))
    result = counter.result()
    for concept in range(NUM_CONCEPTS):
        for place, threshold in enumerate(thresholds):
            for latent in range(NUM_LATENTS):
                expected = slow_counts(case, concept, latent, threshold)
                where = (concept, place, latent)
                found = (result.true_positives[where], result.hits[where], result.active[place, latent])
                assert found == expected, where


@given(cases())
@settings(max_examples=60, deadline=None)
def test_counts_per_row_add_up_to_the_totals(case: Case) -> None:
    labels = case.labels()
    dense = case.matrix().toarray()
    concepts = np.array([0, 1, 2, 0])
    latents, thresholds = np.array([0, 1, 2, 2]), np.array([0, 0.15, 0.5, 0.8], dtype=np.float32)
    rows = count_rows(dense[:, latents] > thresholds, concepts, labels)
    assert rows.hits.shape == (len(case.lengths), 4)
    for number, (concept, latent, threshold) in enumerate(zip(concepts, latents, thresholds, strict=True)):
        expected = slow_counts(case, int(concept), int(latent), float(threshold))
        found = (rows.true_positives[:, number].sum(), rows.hits[:, number].sum(), rows.active[:, number].sum())
        assert found == expected
    for concept in range(NUM_CONCEPTS):
        covered = {(a.row, position) for a in case.annotations if concept in a.concepts for position in a.positions()}
        instances = sum(concept in a.concepts for a in case.annotations)
        assert labels.num_residues_of()[concept] == len(covered) == labels.residues_per_row()[:, concept].sum()
        assert labels.num_instances_of()[concept] == instances == labels.instances_per_row()[:, concept].sum()


def test_an_instance_is_hit_by_its_own_residues_only_where_instances_overlap() -> None:
    """InterPLM lets the later annotation erase the earlier one; here both stay whole."""
    case = Case(
        lengths=[6],
        annotations=[Annotation(0, 0, 4, False, (0, -1)), Annotation(0, 3, 6, False, (0, -1))],
        activations=[[[float(position == 3), float(position == 5), 0.0] for position in range(6)]],
    )
    counter = ConceptCounter(NUM_CONCEPTS, NUM_LATENTS, (0.0,))
    counter.add(case.matrix(), case.labels())
    assert counter.result().hits[0, 0].tolist() == [2, 1, 0]
    assert counter.result().true_positives[0, 0].tolist() == [1, 1, 0]


def test_a_long_instance_that_is_full_is_hit_once() -> None:
    length = 1023
    labels = Labels.build(
        np.array([length]), np.array([0]), np.array([0]), np.array([length]), np.array([False]), np.array([[0, -1]]), 1
    )
    activations = sparse.csr_matrix(np.full((length, 1), 0.7, dtype=np.float32))
    counter = ConceptCounter(1, 1, THRESHOLDS)
    counter.add(activations, labels)
    assert counter.result().hits[0, :, 0].tolist() == [1, 1, 1, 1, 0]


def test_instances_of_any_length_fall_into_pieces_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "ROWS_AT_ONCE", 8)
    monkeypatch.setattr(counts, "INSTANCES_AT_ONCE", 4)
    lengths = np.array([1, 1, 1, 1, 1, 30, 1, 2, 5, 1])
    pieces = counts._pieces(lengths)
    assert pieces[0] == 0
    assert pieces[-1] == len(lengths)
    assert sorted(set(pieces)) == pieces
    for first, last in pairwise(pieces):
        assert last - first <= 4
        assert lengths[first + 1 : last].sum() <= 8


def test_more_thresholds_than_a_byte_can_number() -> None:
    thresholds = np.arange(300) / 300
    labels = Labels.build(*(np.array(x) for x in ([3], [0], [0], [2], [False], [[0, -1]])), 1)
    values = np.array([[0.25], [0.99], [1.0]], dtype=np.float32)
    counter = ConceptCounter(1, 1, thresholds.tolist())
    counter.add(sparse.csr_matrix(values), labels)
    above = values > thresholds.astype(np.float32)
    assert counter.result().active[:, 0].tolist() == above.sum(0).tolist()
    assert counter.result().true_positives[0, :, 0].tolist() == above[:2].sum(0).tolist()
    assert counter.result().hits[0, :, 0].tolist() == above[:2].any(0).tolist()


def test_a_pair_labels_its_two_ends() -> None:
    labels = Labels.build(
        np.array([4, 9]),
        np.array([1, 1]),
        np.array([2, 5]),
        np.array([8, 6]),
        np.array([True, True]),
        np.array([[0, -1], [0, -1]]),
        1,
    )
    # 4 residues of the first sequence, then positions 2 and 7, and the single residue 5 of an interchain bond.
    assert np.flatnonzero(labels.residues.toarray()[:, 0]).tolist() == [6, 9, 11]


def test_a_nan_activation_is_refused() -> None:
    labels = Labels.build(*(np.array(x) for x in ([2], [0], [0], [1], [False], [[0, -1]])), 1)
    bad = sparse.csr_matrix((np.array([np.nan], dtype=np.float32), np.array([0]), np.array([0, 1, 1])), shape=(2, 1))
    with pytest.raises(DataError, match="finite"):
        ConceptCounter(1, 1, THRESHOLDS).add(bad, labels)


def test_nothing_is_added_to_a_result() -> None:
    labels = Labels.build(*(np.array(x) for x in ([2], [0], [0], [1], [False], [[0, -1]])), 1)
    activations = sparse.csr_matrix(np.ones((2, 1), dtype=np.float32))
    counter = ConceptCounter(1, 1, THRESHOLDS)
    counter.add(activations, labels)
    for _ in range(2):
        assert counter.result().active[:, 0].tolist() == [2, 2, 2, 2, 2]
    with pytest.raises(ValueError, match="taken already"):
        counter.add(activations, labels)


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5), (0.5, 0.1), (-0.1, 0.5)])
def test_thresholds_must_ascend(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        ConceptCounter(1, 1, thresholds)


def test_sums_by_row_with_empty_groups() -> None:
    values = np.arange(8).reshape(4, 2)
    assert sums_by_row(values, np.array([0, 0, 3, 4, 4])).tolist() == [[0, 0], [6, 9], [6, 7], [0, 0]]
