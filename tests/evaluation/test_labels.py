from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.errors import DataError
from plmsae.evaluation.labels import (
    annotation_residues,
    check_positions,
    concepts_of,
    evaluated_concepts,
    subtype_of,
)


@pytest.mark.parametrize(
    ("annotation_type", "note", "ligand", "expected"),
    [
        ("Domain", "SH3", "", "SH3"),
        ("Domain", "SH3 1", "", "SH3"),
        ("Domain", "SH3 12; truncated", "", "SH3"),
        ("Zinc finger", "C2H2-type 7", "", "C2H2-type"),
        ("Zinc finger", "C2H2-type 1; degenerate", "", "C2H2-type"),
        ("Domain", "ABC transmembrane type-1", "", "ABC transmembrane type-1"),
        ("Domain", "C2 1", "", "C2"),
        ("Domain", "J", "", "J"),
        ("Domain", "Peptidase S8", "", "Peptidase S8"),
        ("Region", "Interaction with 14-3-3", "", "Interaction with 14-3-3"),
        ("Repeat", "WD 3", "", "WD"),
        ("Repeat", "2", "", ""),
        ("Repeat", "1-2", "", ""),
        ("Repeat", "IV", "", ""),
        ("Repeat", "B-1; approximate", "", ""),
        ("Transmembrane", "Helical; Name=1", "", "Helical"),
        ("Signal peptide", "", "", ""),
        ("Signal peptide", "Or 38", "", ""),
        ("Helix", "{ECO:0000244|PDB:4I1F}.", "", ""),
        ("Disulfide bond", "Interchain (with C-48)", "", ""),
        ("Active site", "", "", ""),
        ("Binding site", "covalent", "heme", "heme"),
        ("Binding site", "", "Zn(2+)", "Zn(2+)"),
        ("Binding site", "", "ATP 2", "ATP"),
        ("Binding site", "", "Substrate", "substrate"),
        ("Binding site", "", "a divalent metal cation", "a divalent metal cation"),
        ("Binding site", "via amide nitrogen", "", ""),
        (
            "Glycosylation",
            "N-linked (GlcNAc...) asparagine; by host. {ECO:1|RULE}.",
            "",
            "N-linked (GlcNAc...) asparagine",
        ),
        ("Transit peptide", "Mitochondrion (Potential).", "", "Mitochondrion"),
        ("Lipidation", "S-palmitoyl cysteine (By similarity)", "", "S-palmitoyl cysteine"),
    ],
)
def test_subtype(annotation_type: str, note: str, ligand: str, expected: str) -> None:
    assert subtype_of(annotation_type, note, ligand) == expected


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["type", "note", "ligand"])


def test_every_annotation_counts_towards_its_type_and_what_it_names() -> None:
    concepts, membership = concepts_of(
        table(
            ("Domain", "SH3 1", ""),
            ("Domain", "SH3 2", ""),
            ("Domain", "rare one", ""),
            ("Domain", "", ""),
            ("Helix", "", ""),
            ("Chain", "Capsid protein", ""),
            ("Non-standard residue", "Selenocysteine", ""),
        )
    )
    names = [concept.name for concept in concepts]
    assert names == ["Domain: SH3", "Domain: any", "Domain: rare one", "Helix"]
    assert membership.tolist() == [[1, 0], [1, 0], [1, 2], [1, -1], [3, -1], [-1, -1], [-1, -1]]


def test_amino_acid_identity_is_not_a_concept() -> None:
    concepts, _ = concepts_of(table(("Non-standard residue", "Selenocysteine", "")))
    assert concepts == ()


def test_no_annotations_give_no_concepts() -> None:
    concepts, membership = concepts_of(table())
    assert concepts == ()
    assert membership.shape == (0, 2)


@pytest.mark.parametrize(
    ("annotation_type", "expected"),
    [
        ("Active site", True),
        ("Glycosylation", True),
        ("Modified residue", True),
        ("Disulfide bond", True),
        ("Site", True),
        ("Cross-link", True),
        ("Domain", False),
        ("Binding site", False),
        ("Zinc finger", False),
        ("Helix", False),
    ],
)
def test_which_recall_counts_residues(annotation_type: str, expected: bool) -> None:
    concepts, _ = concepts_of(table((annotation_type, "", "")))
    assert concepts[0].residue_level is expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 19), st.integers(1, 20), st.booleans()), max_size=12))
def test_residues_of_annotations_are_the_obvious_ones(raw: list[tuple[int, int, int, bool]]) -> None:
    row_starts = np.array([0, 20, 40, 60, 80])
    items = [(row, start, min(start + span, 20), paired) for row, start, span, paired in raw]
    columns = [np.array([item[place] for item in items], dtype=np.int64) for place in range(3)]
    offsets, residues = annotation_residues(*columns, np.array([item[3] for item in items], dtype=bool), row_starts)
    for number, (row, start, end, paired) in enumerate(items):
        expected = sorted({start, end - 1}) if paired else list(range(start, end))
        found = residues[offsets[number] : offsets[number + 1]] - row_starts[row]
        assert found.tolist() == expected


def test_an_annotation_outside_its_sequence_is_refused_with_its_position() -> None:
    annotations = pd.DataFrame({"accession": ["A", "B"], "type": ["Helix", "Domain"], "start": [0, 7], "end": [3, 12]})
    check_positions(annotations, np.array([3, 12]))
    with pytest.raises(DataError, match=r"Domain 8\.\.12 of B is outside its sequence of 11 residues"):
        check_positions(annotations, np.array([3, 11]))


def test_rare_and_duplicate_concepts_are_left_out_with_the_reason() -> None:
    valid = table(*[("Domain", "SH3", "")] * 3, *[("Domain", "PH", "")] * 2, *[("Motif", "Q motif", "")] * 3)
    test = table(*[("Domain", "SH3", "")] * 2, *[("Domain", "PH", "")] * 2, *[("Motif", "Q motif", "")] * 2)
    concepts, membership = concepts_of(pd.concat([valid, test], ignore_index=True))
    owners = [np.array(list("AABCCDEF"), dtype=object), np.array(list("GHIIJK"), dtype=object)]
    chosen, left_out = evaluated_concepts(
        concepts, [membership[:8], membership[8:]], owners, min_instances=2, min_proteins=2
    )
    assert [concepts[place].name for place in chosen] == ["Domain: SH3", "Domain: any", "Motif: any"]
    rows = left_out.set_index("concept")
    # PH has two annotations in each split, but all in one protein; the motif is the only one of its type.
    assert rows.loc["Domain: PH", "reason"] == "too rare"
    assert rows.loc["Domain: PH", ["num_instances_valid", "num_proteins_valid"]].tolist() == [2, 1]
    assert rows.loc["Motif: Q motif", "reason"] == "same annotations as its type"
