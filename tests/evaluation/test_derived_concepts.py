"""Derived concepts: ends of stretches and stretches near others, by hand and against the obvious loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plmsae.evaluation import concept_data
from plmsae.evaluation.derived_concepts import Derived, derived_annotations, parse
from plmsae.evaluation.labels import concepts_of
from plmsae.proteins.feature_types import PAIR_TYPES

COLUMNS = ["accession", "offset", "type", "start", "end", "note", "ligand"]


def table(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """Annotations from (accession, offset, type, 1-based first, last, what it names)."""
    full = [
        (accession, offset, kind, first - 1, last, *(("", name) if kind == "Binding site" else (name, "")))
        for accession, offset, kind, first, last, name in rows
    ]
    return pd.DataFrame(full, columns=COLUMNS)


def derive(annotations: pd.DataFrame, one: Derived, length: int = 100) -> list[tuple[str, int, int]]:
    """(accession, 1-based first, last) of a derived concept's instances."""
    concepts, membership = concepts_of(annotations)
    found, which = derived_annotations(annotations, concepts, membership, np.full(len(annotations), length), [one])
    assert (which == 0).all()
    assert list(found.columns) == COLUMNS
    return [(row.accession, row.start + 1, row.end) for row in found.itertuples()]


HELICES = table(
    ("P", 0, "Helix", 1, 9, ""),
    ("P", 0, "Helix", 10, 11, ""),
    ("P", 0, "Helix", 90, 100, ""),
    ("P", 0, "Beta strand", 20, 26, ""),
    ("Q", 50, "Helix", 1, 8, ""),
    ("Q", 50, "Helix", 12, 18, ""),
)


def test_the_first_residues_of_every_helix() -> None:
    found = derive(HELICES, Derived("Helix", first=3))
    # Row Q starts at residue 51 of its protein, where the helix at its start may have been cut.
    assert found == [("P", 1, 3), ("P", 10, 11), ("P", 90, 92), ("Q", 12, 14)]


def test_the_last_residues_of_every_helix() -> None:
    found = derive(HELICES, Derived("Helix", last=3))
    # The helix up to residue 100 ends where the row does, which may be a cut.
    assert found == [("P", 7, 9), ("P", 10, 11), ("Q", 6, 8), ("Q", 16, 18)]


NEAR = table(
    ("P", 0, "Beta strand", 10, 14, ""),
    ("P", 0, "Beta strand", 20, 24, ""),
    ("P", 0, "Beta strand", 40, 44, ""),
    ("P", 0, "Binding site", 17, 17, "ATP"),
    ("P", 0, "Binding site", 47, 48, "heme 1"),
    ("Q", 0, "Beta strand", 15, 18, ""),
    ("R", 0, "Binding site", 1, 1, "ATP"),
)


@pytest.mark.parametrize(
    ("near", "within", "expected"),
    [
        ("Binding site", 2, []),
        ("Binding site", 3, [(10, 14), (20, 24), (40, 44)]),
        ("Binding site: any", 3, [(10, 14), (20, 24), (40, 44)]),
        ("Binding site: ATP", 15, [(10, 14), (20, 24)]),
        ("Binding site: ATP", 23, [(10, 14), (20, 24), (40, 44)]),
        ("Binding site: heme", 22, [(40, 44)]),
        ("Binding site: heme", 23, [(20, 24), (40, 44)]),
        ("Binding site: GTP", 99, []),
        ("Beta strand", 5, []),
        ("Beta strand", 6, [(10, 14), (20, 24)]),
    ],
)
def test_strands_near_a_binding_site(near: str, within: int, expected: list[tuple[int, int]]) -> None:
    assert derive(NEAR, Derived("Beta strand", near=near, within=within)) == [("P", *pair) for pair in expected]


def test_within_0_asks_for_a_shared_residue_and_pairs_are_two_residues() -> None:
    annotations = table(
        ("P", 0, "Domain", 10, 30, "SH3 1"),
        ("P", 0, "Domain", 12, 14, "PH"),
        ("P", 0, "Disulfide bond", 5, 20, ""),
        ("P", 0, "Disulfide bond", 40, 43, ""),
        ("P", 0, "Disulfide bond", 60, 60, "Interchain"),
    )
    assert derive(annotations, Derived("Domain", near="Disulfide bond", within=0)) == [("P", 10, 30)]
    assert derive(annotations, Derived("Disulfide bond", near="Domain: SH3", within=0)) == [("P", 5, 20)]
    # No bond is near itself, though its own two ends are three residues apart.
    assert derive(annotations, Derived("Disulfide bond", near="Disulfide bond", within=16)) == []
    assert derive(annotations, Derived("Disulfide bond", near="Disulfide bond", within=17)) == [
        ("P", 40, 43),
        ("P", 60, 60),
    ]


def test_a_residue_may_be_in_several_instances_each_of_which_counts() -> None:
    """Two overlapping domains, 3..8 and 5..9: their first three residues are 3 4 5 and 5 6 7, five residues in all."""
    proteins = pd.DataFrame({"accession": ["P", "T"], "offset": [0, 0], "sequence": ["A" * 12] * 2, "length": [12] * 2})
    domains = [("Domain", 3, 8, "SH3 1"), ("Domain", 5, 9, "SH3 2"), ("Helix", 2, 4, "")]
    annotations = table(*[(name, 0, *domain) for name in "PT" for domain in domains])
    splits = {"valid": proteins.iloc[:1].reset_index(drop=True), "test": proteins.iloc[1:].reset_index(drop=True)}
    wanted = parse(
        [{"of": "Domain: SH3", "first": 3}, {"of": "Helix", "near": "Domain", "within": 0}, {"of": "Turn", "last": 1}]
    )
    data = concept_data.build(annotations, splits, 1, 1, 100, wanted)
    names = [concept.name for concept in data.concepts]
    assert names == ["Domain: any", "Helix", "Domain: SH3, first 3 residues", "Helix, within 0 of Domain"]
    assert data.num_named == 2
    for split in (data.valid, data.test):
        dense = split.labels.residues.toarray()
        assert np.flatnonzero(dense[:, 2]).tolist() == [2, 3, 4, 5, 6]
        assert np.flatnonzero(dense[:, 3]).tolist() == [1, 2, 3]
        assert split.labels.num_instances_of().tolist() == [2, 1, 2, 1]
    assert data.residue_level.tolist() == [False] * 4
    assert data.derived_left_out["concept"].tolist() == ["Turn, last residue"]
    assert data.left_out["concept"].tolist() == ["Domain: SH3"]
    ours, others = data.part(derived=True), data.part(derived=False)
    assert [concept.name for concept in ours.concepts] == names[2:] == ours.table["concept"].tolist()
    assert [concept.name for concept in others.concepts] == names[:2] == others.table["concept"].tolist()
    without = concept_data.build(annotations, splits, 1, 1, 100)
    pd.testing.assert_frame_equal(without.table, others.table)
    pd.testing.assert_frame_equal(without.left_out, others.left_out)
    assert (without.test.labels.residues != data.test.labels.residues[:, :2]).nnz == 0


def positions(row: Any) -> set[int]:
    return {row.start, row.end - 1} if row.type in PAIR_TYPES else set(range(row.start, row.end))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("PQ"),
            st.sampled_from([0, 7]),
            st.sampled_from(["Helix", "Turn", "Disulfide bond"]),
            st.integers(1, 30),
            st.integers(1, 8),
        ),
        max_size=10,
    ),
    st.sampled_from(["Helix", "Disulfide bond"]),
    st.sampled_from(["Helix", "Turn", "Disulfide bond"]),
    st.integers(0, 12),
)
def test_near_is_what_a_loop_finds(raw: list[tuple[Any, ...]], of: str, near: str, within: int) -> None:
    annotations = table(*[(name, offset, kind, first, first + span - 1, "") for name, offset, kind, first, span in raw])
    rows = list(annotations.itertuples())
    expected = [
        (one.accession, one.start + 1, one.end)
        for one in rows
        if one.type == of
        and any(
            abs(mine - theirs) <= within
            for other in rows
            if other.type == near
            and other.Index != one.Index
            and (other.accession, other.offset) == (one.accession, one.offset)
            for mine in positions(one)
            for theirs in positions(other)
        )
    ]
    assert derive(annotations, Derived(of, near=near, within=within)) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"of": "Helix"}, "exactly one of first, last and near"),
        ({"of": "Helix", "first": 2, "last": 2}, "exactly one of first, last and near"),
        ({"of": "Helix", "near": "Turn"}, "near and within belong together"),
        ({"of": "Helix", "first": 2, "within": 3}, "near and within belong together"),
        ({"of": "Helix", "first": 0}, "first is at least 1, not 0"),
        ({"of": "Helix", "near": "Turn", "within": -1}, "within is at least 0"),
        ({"of": "Helx", "first": 2}, "did you mean 'Helix'"),
        ({"of": "Chain", "first": 2}, "'Chain' is not an annotation type"),
        ({"of": "Helix", "near": "Bindin site: ATP", "within": 2}, "did you mean 'Binding site'"),
        ({"of": "Disulfide bond", "last": 1}, "names two residues"),
    ],
)
def test_what_makes_no_sense_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse([entry])


def test_one_stands_once() -> None:
    with pytest.raises(ValueError, match="'Helix, first 2 residues' stands twice"):
        parse([{"of": "Helix", "first": 2}, {"of": "Turn", "first": 2}, {"of": "Helix", "first": 2, "last": None}])
