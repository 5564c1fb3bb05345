from __future__ import annotations

from pathlib import Path

import pytest
from Bio import SeqIO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plmsae.errors import DataError
from plmsae.proteins.fasta import read_fasta, read_text, split_header


def write(tmp_path: Path, text: str, name: str = "in.fasta") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_headers_wrapping_case_stops_and_blanks(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        ">sp|P12345|AATM_RABIT Aspartate aminotransferase\nMALLHS\narvlsg*\n\n"
        ">plain some words\r\nMK TA\r\n\r\nYIA\r\n>nothing\n>last|x\nXBZUO\n",
    )
    proteins = list(read_fasta(path))
    assert [(p.accession, p.name, p.sequence, p.line, p.stop_removed) for p in proteins] == [
        ("P12345", "AATM_RABIT Aspartate aminotransferase", "MALLHSARVLSG", 1, True),
        ("plain", "some words", "MKTAYIA", 5, False),
        ("nothing", "", "", 9, False),
        ("last|x", "", "XBZUO", 10, False),
    ]


@given(
    st.lists(
        st.tuples(
            st.text("abcXYZ019_.|", min_size=1, max_size=8),
            st.text("ACDEFGHIKLMNPQRSTVWYXacd", max_size=30),
            st.integers(1, 9),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_sequences_are_those_that_biopython_reads(tmp_path: Path, records: list[tuple[str, str, int]]) -> None:
    text = ""
    for name, sequence, width in records:
        lines = [sequence[i : i + width] for i in range(0, len(sequence), width)]
        text += f">r{name}\n" + "".join(line + "\n" for line in lines)
    path = write(tmp_path, text)
    ours = [(p.accession, p.sequence) for p in read_fasta(path)]
    assert ours == [(record.id, str(record.seq).upper()) for record in SeqIO.parse(path, "fasta")]


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("", "does not hold a FASTA record", None),
        ("\n\n", "does not hold a FASTA record", None),
        ("MKTA\n>a\nMK\n", "text before the first header", 1),
        (">a\nMKT\nMJK\n", "illegal residue 'J' at position 5 of 'a'", 3),
        (">a\nMK1\n", "illegal residue '1' at position 3 of 'a'", 2),
        (">a\nMK-TA\n", "illegal residue '-' at position 3 of 'a'", 2),
        (">a\nMK*TA\n", "illegal residue '*' at position 3 of 'a'", 2),
        (">a\nMK*\n\nTA\n", "illegal residue '*' at position 3 of 'a'", 2),
        (">a\nMK**\n", "illegal residue '*' at position 3 of 'a'", 2),
        (">a\nMKé\n", "illegal residue 'É' at position 3 of 'a'", 2),
        (">a\nMK\x00\n", r"illegal residue '\x00' at position 3 of 'a'", 2),
        (">a\nMK\n> \nMK\n", "a record has no name", 3),
        (">" + "a" * 201 + "\nMK\n", "cannot be an accession", 1),
    ],
)
def test_bad_fasta(tmp_path: Path, text: str, problem: str, line: int | None) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as error:
        list(read_fasta(path))
    assert problem in error.value.problem
    assert error.value.where == (str(path) if line is None else f"{path}, line {line}")
    assert error.value.fix


def test_the_reader_streams(tmp_path: Path) -> None:
    path = write(tmp_path, ">good\nMK\n>also\nMK\n>bad\n!!\n")
    reader = read_fasta(path)
    assert [next(reader).accession, next(reader).accession] == ["good", "also"]
    with pytest.raises(DataError, match="position 1 of 'bad'"):
        next(reader)


def test_one_sequence_per_line(tmp_path: Path) -> None:
    path = write(tmp_path, "MKTA\r\n\r\nmkv*\r\n", "in.txt")
    assert [(p.accession, p.sequence, p.stop_removed) for p in read_text(path)] == [
        ("line1", "MKTA", False),
        ("line3", "MKV", True),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("MK\nM K\n", "illegal residue ' ' at position 2 of 'line2'"), ("\n", "does not hold a sequence")],
)
def test_bad_text(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError) as error:
        list(read_text(write(tmp_path, text)))
    assert problem in error.value.problem


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("sp|P1|A_B the name OS=x", ("P1", "A_B the name OS=x")),
        ("tr|Q9|Z_Z", ("Q9", "Z_Z")),
        ("cafa|P1|x", ("cafa|P1|x", "")),
        ("1abc_A mol:protein", ("1abc_A", "mol:protein")),
        ("", ("", "")),
    ],
)
def test_header(header: str, expected: tuple[str, str]) -> None:
    assert split_header(header) == expected
