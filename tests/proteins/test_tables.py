from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plmsae.errors import DataError
from plmsae.proteins.records import Feature, Protein
from plmsae.proteins.rows import build_rows
from plmsae.proteins.tables import read_annotations, read_sequences, write_annotations, write_sequences

PROTEINS = [
    Protein(
        "P1",
        "first",
        "MKTAYIAKQR",
        2,
        (
            Feature("Helix", 2, 9),
            Feature("Domain", 0, 4, "SH3"),
            Feature("Binding site", 1, 2, "", "Ca(2+)"),
            Feature("Binding site", 1, 2, "", "Ca(2+)"),
        ),
    ),
    Protein("P2", "", "MK", 3),
]


def test_rows_and_windows_by_hand(tmp_path: Path) -> None:
    rows = build_rows(PROTEINS, {"P1": "P1", "P2": "P1"}, {"P1": "test", "P2": "test"}, policy="window", max_residues=6)
    write_sequences(tmp_path, rows.sequences)
    write_annotations(tmp_path, rows.annotations)
    assert rows.num_merged == 1
    assert read_sequences(tmp_path).to_numpy().tolist() == [
        ["P1", 0, "MKTAY", 5, "P1", "test", "first"],
        ["P1", 5, "IAKQR", 5, "P1", "test", "first"],
        ["P2", 0, "MK", 2, "P1", "test", ""],
    ]
    assert read_annotations(tmp_path).to_numpy().tolist() == [
        ["P1", 0, "Domain", 0, 4, "SH3", ""],
        ["P1", 0, "Binding site", 1, 2, "", "Ca(2+)"],
        ["P1", 0, "Helix", 2, 5, "", ""],
        ["P1", 5, "Helix", 0, 4, "", ""],
    ]


def test_an_empty_table_keeps_its_schema(tmp_path: Path) -> None:
    rows = build_rows(PROTEINS[1:], {"P2": "P2"}, {"P2": "train"}, policy="drop", max_residues=6)
    write_annotations(tmp_path, rows.annotations)
    found = read_annotations(tmp_path)
    assert len(found) == 0
    assert list(found.columns) == ["accession", "offset", "type", "start", "end", "note", "ligand"]
    assert found["start"].dtype == "int32"


def test_damaged_and_foreign_tables_are_refused(tmp_path: Path) -> None:
    rows = build_rows(PROTEINS[1:], {"P2": "P2"}, {"P2": "train"}, policy="drop", max_residues=6)
    write_sequences(tmp_path, rows.sequences)
    path = tmp_path / "sequences.parquet"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"'sequences.parquet' cannot be read"):
        read_sequences(tmp_path)
    path.write_bytes(good)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["split"]), path)
    with pytest.raises(DataError, match="has no column 'split'"):
        read_sequences(tmp_path)
    pq.write_table(table.set_column(3, "length", pa.array([2.0])), path)
    with pytest.raises(DataError, match="column 'length' is double, not int32"):
        read_sequences(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        read_sequences(tmp_path)
