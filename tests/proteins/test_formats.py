from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from plmsae.errors import DataError, UserError
from plmsae.proteins.formats import detect_format, read_proteins


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n>a\nMK\n", "fasta"),
        ("Entry\tSequence\nP1\tMK\n", "uniprot_tsv"),
        ("MKTA\nMKV\n", "text"),
        ("mkta*\n", "text"),
    ],
)
def test_formats_are_told_by_content(tmp_path: Path, text: str, expected: str, packed: bool) -> None:
    path = tmp_path / "misleading.csv"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert detect_format(path) == expected
    assert all(set(protein.sequence) <= set("MKTAV") for protein in read_proteins(path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n\n", "empty"),
        ("<?xml version='1.0'?>\n", "XML"),
        ("# STOCKHOLM 1.0\n", "alignment"),
        ("1, 2, 3\n", "not known"),
    ],
)
def test_other_files_are_refused_with_advice(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "in"
    path.write_text(text)
    with pytest.raises(DataError, match=problem) as error:
        detect_format(path)
    assert error.value.fix


def test_a_stated_format_is_taken_at_its_word(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text(">a\nMK\n")
    with pytest.raises(DataError, match="missing columns"):
        list(read_proteins(path, "uniprot_tsv"))
    with pytest.raises(UserError, match="does not exist"):
        list(read_proteins(tmp_path / "none"))
