"""Distributions of lengths: by hand, against what ingest does, and from files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.errors import DataError, UserError
from plmsae.planning.lengths import Lengths, log_normal, read_lengths


def test_sums_by_hand() -> None:
    lengths = Lengths({10: 2, 30: 1})
    assert (lengths.sequences, lengths.residues, lengths.longest) == (3, 50, 30)
    assert lengths.mean == pytest.approx(50 / 3)
    assert lengths.tokens(2) == 56
    assert lengths.squared_tokens(2) == 2 * 144 + 1024
    assert lengths.scaled(0.5).residues == 25
    assert lengths.scaled(0).tokens(2) == 0


@pytest.mark.parametrize(
    ("policy", "rows", "left_out"),
    [
        ("drop", {20: 1.0, 50: 4.0}, {"too_short": 3.0, "too_long": 2.0, "cropped": 0.0, "windowed": 0.0}),
        ("crop", {20: 1.0, 50: 6.0}, {"too_short": 3.0, "too_long": 0.0, "cropped": 2.0, "windowed": 0.0}),
        ("window", {20: 1.0, 50: 4.0, 40: 6.0}, {"too_short": 3.0, "too_long": 0.0, "cropped": 0.0, "windowed": 2.0}),
    ],
)
def test_what_ingest_keeps(policy: str, rows: dict[int, float], left_out: dict[str, float]) -> None:
    # 120 residues in windows of at most 50: three of 40.
    found = Lengths({5: 3, 20: 1, 50: 4, 120: 2}).kept(
        min_residues=10,
        max_residues=50,
        policy=policy,  # type: ignore[arg-type]
        overlap=0,
    )
    assert (found[0].counts, found[1]) == (rows, left_out)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="no sequence of the corpus has 10 to 20 residues"):
        Lengths({5: 1, 30: 1}).kept(min_residues=10, max_residues=20, policy="drop", overlap=0)


@given(mean=st.floats(100, 450), sequences=st.floats(1, 1e8))
def test_an_imagined_corpus_has_the_mean_that_was_asked_for(mean: float, sequences: float) -> None:
    lengths = log_normal(sequences, mean, shortest=30, longest=1022)
    assert lengths.sequences == pytest.approx(sequences)
    assert lengths.mean == pytest.approx(mean, rel=1e-6)
    assert min(lengths.counts) == 30
    assert lengths.longest == 1022
    # Lengths that differ cost attention more than their mean would.
    assert lengths.squared_tokens(0) / sequences > mean**2


def test_an_imagined_corpus_looks_like_swissprot() -> None:
    # The 11,081 entries of 30 to 1,022 residues of this repository's file: mean 339.3, mean square over square 1.415.
    lengths = log_normal(1, 339.3, shortest=30, longest=1022)
    assert lengths.squared_tokens(0) / 339.3**2 == pytest.approx(1.415, rel=0.05)


@pytest.mark.parametrize("mean", [20, 31, 1000])
def test_a_mean_out_of_reach_is_refused(mean: float) -> None:
    with pytest.raises(UserError, match="cannot have a mean length"):
        log_normal(10, mean, shortest=30, longest=1022)


def test_a_fasta_file_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "some.fasta"
    path.write_text(">a\nMKV\n>b\nMKVL\nMKV\n>c\nMKV\n>d\n")
    assert read_lengths(path)["all"].counts == {3: 2, 7: 1}


def test_sequences_parquet_is_counted_by_split(tmp_path: Path) -> None:
    path = tmp_path / "sequences.parquet"
    pq.write_table(pa.table({"split": ["train", "train", "test"], "length": pa.array([3, 3, 9], pa.int32())}), path)
    found = read_lengths(path)
    assert {split: dict(lengths.counts) for split, lengths in found.items()} == {"train": {3: 2}, "test": {9: 1}}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"length": [3]}, "no columns"),
        ({"split": ["train"], "length": pa.array([0])}, "without length"),
        ({"split": pa.array([None], pa.string()), "length": pa.array([3])}, "without length"),
        ({"split": pa.array([], pa.string()), "length": pa.array([], pa.int32())}, "no sequences"),
    ],
)
def test_a_table_that_is_no_sequences_parquet_is_refused(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=message):
        read_lengths(path)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1 this is not a table")
    with pytest.raises(DataError, match="damaged"):
        read_lengths(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_lengths(tmp_path / "nothing.fasta")
