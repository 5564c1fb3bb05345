from pathlib import Path

import pandas as pd
import pytest

from plmsae.errors import DataError
from plmsae.evaluation.label_tables import LabelTable, read_label_table

SEQUENCES = pd.DataFrame(
    [("P1", 0, "MKTAY"), ("P2", 0, "ACDEF"), ("P2", 3, "EFGHI")], columns=["accession", "offset", "sequence"]
)


def read(tmp_path: Path, text: str) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    return read_label_table(path, SEQUENCES)


def test_residues(tmp_path: Path) -> None:
    text = (
        "accession,position,residue,label\nP1,1,M,start\nP1,3,t,zinc\n\nP2,8,I,zinc\nP1,1,M,zinc\nP1,2,K,\nQ9,1,M,x\n"
    )
    found = read(tmp_path, text)
    assert found.labels == ("start", "zinc")
    assert (found.protein_level, found.num_unknown) == (False, 1)
    assert found.rows.to_numpy().tolist() == [
        ["P1", 0, 0],
        ["P1", 2, 1],
        ["P2", 7, 1],
        ["P1", 0, 1],
        ["P1", 1, -1],
    ]


def test_proteins_as_a_spreadsheet_writes_them(tmp_path: Path) -> None:
    found = read(tmp_path, '\ufefflabel,accession\r\n"Cell membrane, inner", P1 \r\n,P2\r\n')
    assert found.protein_level
    assert found.labels == ("Cell membrane, inner",)
    assert found.rows["label"].tolist() == [0, -1]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("accession,position\nP1,1\n", 1, "column 'label' is missing"),
        ("accession,positon,label\nP1,1,a\n", 1, "unknown column 'positon'"),
        ("accession,label,label\nP1,a,a\n", 1, "stands twice"),
        ("accession,residue,label\nP1,M,a\n", 1, "without 'position'"),
        ("accession,label\nP1,a\nP2\n", 3, "1 cells, the header 2"),
        ("accession,label\nP1,a\n,b\n", 3, "accession is empty"),
        ("accession,position,label\nP1,1,a\nP1,0,a\n", 3, "'0' is not a whole number from 1"),
        ("accession,position,label\nP1,1.0,a\n", 2, "'1.0' is not a whole number"),
        ("accession,position,label\nP1,,a\n", 2, "'' is not a whole number"),
        ("accession,position,label\nP1,6,a\n", 2, "position 6 of 'P1' is outside .*up to 5"),
        ("accession,position,label\nP2,9,a\n", 2, "position 9 of 'P2' is outside .*up to 8"),
        ("accession,position,residue,label\nP1,2,M,a\n", 2, "residue 2 of 'P1' is K, not M"),
        ("accession,label\nP1,a\nP2,b\nP1,a\n", 4, "stands twice, first in line 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(DataError, match=problem) as error:
        read(tmp_path, text)
    assert error.value.where == f"{tmp_path / 'labels.csv'}, line {line}"
    assert error.value.fix


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("accession,label\nQ1,a\nQ2,a\n", "none of the 2 rows is about one of the 2 proteins"),
        ("accession,label\nP1,\n", "no row has a label"),
        ("", "column 'accession' is missing"),
        ('accession,label\n"P1,a\n', "cannot be read"),
    ],
)
def test_a_table_that_says_nothing_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read(tmp_path, text)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_label_table(tmp_path / "none.csv", SEQUENCES)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_label_table(tmp_path / "x.csv", SEQUENCES)
