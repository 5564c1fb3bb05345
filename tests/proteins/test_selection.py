from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plmsae.errors import DataError
from plmsae.proteins.records import Feature, Protein
from plmsae.proteins.selection import Selection, num_kinds

PATH = Path("in.tsv")


def protein(accession: str, sequence: str = "MKTAYIAK", *features: Feature, line: int = 0) -> Protein:
    return Protein(accession, "", sequence, line or int(accession.strip("P") or 0) + 2, tuple(features))


def select(proteins: list[Protein], **settings: Any) -> Selection:
    selection = Selection(PATH, **settings)
    for item in proteins:
        selection.offer(item)
    return selection


def accessions(selection: Selection) -> list[str]:
    return [item.accession for item in selection.proteins()]


@st.composite
def collections(draw: st.DrawFn) -> list[Protein]:
    num = draw(st.integers(1, 25))
    found = []
    for index in range(num):
        sequence = draw(st.text("ACD", min_size=1, max_size=4))
        kinds = draw(st.lists(st.sampled_from(["Helix", "Domain", "Chain", "Turn"]), max_size=3))
        found.append(protein(f"P{index}", sequence, *[Feature(kind, 0, 1, note="n") for kind in kinds]))
    return found


@given(collections(), st.randoms(), st.integers(0, 5), st.integers(1, 30), st.sampled_from(["keep", "drop"]))
@settings(deadline=None)
def test_the_order_of_the_rows_does_not_matter(
    proteins: list[Protein], shuffler: random.Random, seed: int, size: int, duplicates: str
) -> None:
    shuffled = proteins.copy()
    shuffler.shuffle(shuffled)
    options = {"seed": seed, "max_proteins": size, "duplicate_sequences": duplicates}
    one, other = select(proteins, **options), select(shuffled, **options)
    assert accessions(one) == accessions(other)
    assert one.dropped() == other.dropped()
    assert len(proteins) == len(accessions(one)) + len(one.dropped()) + one.num_not_selected
    assert one.num_not_selected == other.num_not_selected
    if duplicates == "drop":
        sequences = [item.sequence for item in one.proteins()]
        assert len(set(sequences)) == len(sequences)
        assert len(sequences) == min(size, len({item.sequence for item in proteins}))


@given(collections(), st.integers(1, 10), st.integers(0, 10))
@settings(deadline=None)
def test_a_smaller_subset_is_part_of_a_larger_one(proteins: list[Protein], size: int, more: int) -> None:
    small = accessions(select(proteins, max_proteins=size))
    assert set(small) <= set(accessions(select(proteins, max_proteins=size + more)))


def test_annotated_proteins_come_first_and_chains_are_no_annotation() -> None:
    plain = [protein(f"P{index}", "MKTAYIAK", Feature("Chain", 0, 8)) for index in range(50)]
    annotated = [protein(f"P{index}", "MKTAYIAK", Feature("Helix", 0, 4)) for index in range(50, 60)]
    assert set(accessions(select(plain + annotated, max_proteins=10))) == {item.accession for item in annotated}
    kept = select(plain + annotated, require_annotations=True)
    assert accessions(kept) == sorted(item.accession for item in annotated)
    assert kept.num_dropped() == {"not annotated": 50}


def test_proteins_that_show_more_per_residue_are_taken_more_often() -> None:
    rich = [Feature("Domain", 0, 2, "a"), Feature("Helix", 0, 2), Feature("Binding site", 0, 1, "", "ATP")]
    proteins = [protein(f"P{index}", "MKTAYIAK", *(rich if index < 300 else rich[1:2])) for index in range(600)]
    assert [num_kinds(proteins[0]), num_kinds(proteins[-1])] == [5, 1]
    chosen = accessions(select(proteins, max_proteins=200))
    share = sum(int(name[1:]) < 300 for name in chosen) / 200
    # Exponential race with weights 25:1: of the first 200 drawn without replacement almost all are rich ones.
    assert 0.88 < share < 1.0
    assert chosen != accessions(select(proteins, max_proteins=200, seed=1))


def test_reasons() -> None:
    selection = select(
        [protein("P1", ""), protein("P2", "MK"), protein("P3", "M" * 9), protein("P4", "MKTA"), protein("P5", "MKTA")],
        min_residues=3,
        max_residues=8,
        duplicate_sequences="drop",
    )
    kept = accessions(selection)[0]
    lost = {"P4": "P5", "P5": "P4"}[kept]
    assert selection.dropped() == sorted(
        [
            ("P1", "empty sequence"),
            ("P2", "too short: 2 residues, min_residues is 3"),
            ("P3", "too long: 9 residues, max_residues is 8"),
            (lost, f"duplicate sequence: the same as {kept}"),
        ]
    )


def test_duplicate_accession_names_both_lines() -> None:
    selection = select([protein("P1", line=2)])
    with pytest.raises(DataError, match="accession 'P1' stands twice") as error:
        selection.offer(protein("P1", "AAAA", line=9))
    assert error.value.where == "in.tsv, lines 2 and 9"


def test_nothing_left_says_why() -> None:
    with pytest.raises(DataError, match=r"no protein is left of 3 \(1 too long, 2 too short\)"):
        select(
            [protein("P1", "M"), protein("P2", "MK"), protein("P3", "M" * 9)], min_residues=3, max_residues=8
        ).proteins()


def test_memory_is_bounded_by_what_is_kept() -> None:
    selection = Selection(PATH, max_proteins=5, duplicate_sequences="drop")
    for index in range(2000):
        selection.offer(protein(f"P{index}", "MKTA" + "ACDEFGHIKL"[index % 10] * (1 + index // 10)))
    held = [value for value in vars(selection).values() if isinstance(value, dict | list)]
    assert (
        sum(
            isinstance(item, Protein)
            for store in held
            for item in (store.values() if isinstance(store, dict) else store)
        )
        == 5
    )
    assert len(accessions(selection)) == 5
