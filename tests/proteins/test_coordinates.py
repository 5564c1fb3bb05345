"""Coordinates of rows: windows, several structures, gaps, and tables that cannot be used."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plmsae.errors import DataError, UserError
from plmsae.proteins.coordinates import read_coordinates
from plmsae.proteins.structure_tables import STRUCTURES_FILE, STRUCTURES_SCHEMA


def _write(folder: Path, residues: list[tuple[str, str, int, float]]) -> None:
    """Rows of accession, structure, position and x; y and z are 1 and 2."""
    rows = [
        (accession, structure, "A", place, "A", True, x, 1.0, 2.0, 90.0) for accession, structure, place, x in residues
    ]
    columns = dict(zip(STRUCTURES_SCHEMA.names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns, schema=STRUCTURES_SCHEMA), folder / STRUCTURES_FILE)


def _proteins(*rows: tuple[str, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["accession", "offset", "length"])


def test_rows_get_the_structure_that_covers_most_of_them(tmp_path: Path) -> None:
    """P1 is two windows of four residues: the first is best covered by `a`, the second by `b`; equal ones by name."""
    residues = [("P1", "b", place, 100.0 + place) for place in (3, 4, 5, 6)]
    residues += [("P1", "a", place, float(place)) for place in (0, 1, 2)]
    residues += [("P2", "z", 1, 7.0), ("P2", "y", 0, 8.0), ("P3", "c", 0, 9.0)]
    _write(tmp_path, residues)
    first, second, equal, none, outside = read_coordinates(
        tmp_path, _proteins(("P1", 0, 4), ("P1", 4, 4), ("P2", 0, 2), ("P4", 0, 3), ("P3", 5, 2))
    )
    assert first is not None
    assert second is not None
    assert equal is not None
    np.testing.assert_array_equal(first[:, 0], [0, 1, 2, np.nan])
    np.testing.assert_array_equal(first[0], [0, 1, 2])
    np.testing.assert_array_equal(second[:, 0], [104, 105, 106, np.nan])
    np.testing.assert_array_equal(equal[:, 0], [8, np.nan])
    assert none is None
    assert outside is None


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no structures[\s\S]*ingest.alphafold"):
        read_coordinates(tmp_path, _proteins(("P1", 0, 4)))
    _write(tmp_path, [("P1", "a", 0, 1.0), ("P1", "a", 2, float("nan"))])
    with pytest.raises(DataError, match="residue 3 of P1"):
        read_coordinates(tmp_path, _proteins(("P1", 0, 4)))
    (tmp_path / STRUCTURES_FILE).write_bytes(b"not a table")
    with pytest.raises(DataError, match="cannot be read"):
        read_coordinates(tmp_path, _proteins(("P1", 0, 4)))
    pq.write_table(pa.table({"accession": ["P1"]}), tmp_path / STRUCTURES_FILE)
    with pytest.raises(DataError, match="lack one of"):
        read_coordinates(tmp_path, _proteins(("P1", 0, 4)))
