from __future__ import annotations

from pathlib import Path

import pytest

from plmsae.proteins.corpus_tables import CorpusWriter
from plmsae.proteins.records import STANDARD_RESIDUES
from plmsae.proteins.split import Split
from plmsae.validation.corpus import CorpusCheck, check_corpus


def sequence(number: int, length: int = 40) -> str:
    """Different residues for different numbers."""
    text = ""
    for _ in range(6):
        text += STANDARD_RESIDUES[number % 20]
        number //= 20
    return (text * length)[:length]


def written(folder: Path, rows: list[tuple[Split, str, str]]) -> Path:
    with CorpusWriter(folder, 10) as writer:
        for split, accession, text in rows:
            writer.add(split, accession, "", text)
    return folder


def rows(num_train: int = 60, held_out: int = 5) -> list[tuple[Split, str, str]]:
    splits: list[Split] = [*["test"] * held_out, *["valid"] * held_out, *["train"] * num_train]  # type: ignore[list-item]
    return [(split, f"P{number}", sequence(number)) for number, split in enumerate(splits)]


def check(folder: Path, **changes: int) -> CorpusCheck:
    plain = {"min_residues": 30, "max_residues": 1022, "held_out_size": 5, "portion_rows": 20}
    return check_corpus(folder, **(plain | changes))


def broken(found: CorpusCheck) -> set[str]:
    return {finding.rule.name for finding in found.findings if not finding.passed}


def test_a_sound_corpus_passes_in_any_portions(tmp_path: Path) -> None:
    written(tmp_path, rows())
    by_portion = [check(tmp_path, portion_rows=size) for size in (10, 33, 1000)]
    for found in by_portion:
        assert broken(found) == set()
        assert (found.num_sequences, found.num_residues) == (70, 70 * 40)
        assert found.num_proteins == {"train": 60, "valid": 5, "test": 5}
        letters = next(finding for finding in found.findings if finding.rule.name == "letters")
        assert letters.num_checked in (0, 70)
    assert [finding.rule.name for finding in by_portion[0].findings] == [f.rule.name for f in by_portion[2].findings]


@pytest.mark.parametrize(
    ("place", "accession", "text", "rule"),
    [
        (65, "P65", sequence(3), "sequence_once"),
        (65, "P65", sequence(65, 29), "length_bounds"),
        (65, "P65", sequence(65, 1023), "length_bounds"),
        (65, "P65", sequence(65)[:-1] + "J", "letters"),
    ],
)
def test_a_defect_in_any_portion_is_found(tmp_path: Path, place: int, accession: str, text: str, rule: str) -> None:
    table = rows()
    table[place] = (table[place][0], accession, text)
    found = check(written(tmp_path, table))
    assert rule in broken(found)
    finding = next(finding for finding in found.findings if finding.rule.name == rule)
    assert finding.num_failed == 1
    if rule != "sequence_once":
        assert "P65" in finding.examples[0]


def test_held_out_sets_of_another_size_are_found(tmp_path: Path) -> None:
    found = check(written(tmp_path, rows(held_out=4)))
    assert broken(found) >= {"split_not_too_small"}
