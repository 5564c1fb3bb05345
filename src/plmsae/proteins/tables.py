"""The two tables that travel from `ingest` to every later stage, as Parquet with a fixed schema.

`sequences.parquet`: one row per kept stretch of a protein, by accession and offset.
`annotations.parquet`: one row per feature of a stretch; positions are 0-based half-open within the row's sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plmsae.errors import DataError

SEQUENCES_FILE = "sequences.parquet"
ANNOTATIONS_FILE = "annotations.parquet"
DROPPED_FILE = "dropped.tsv"
SOURCE_FILE = "source.json"

SEQUENCES_SCHEMA = pa.schema(
    [
        ("accession", pa.string()),
        ("offset", pa.int32()),
        ("sequence", pa.string()),
        ("length", pa.int32()),
        ("cluster", pa.string()),
        ("split", pa.string()),
        ("name", pa.string()),
    ]
)
ANNOTATIONS_SCHEMA = pa.schema(
    [
        ("accession", pa.string()),
        ("offset", pa.int32()),
        ("type", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("note", pa.string()),
        ("ligand", pa.string()),
    ]
)


def write_sequences(folder: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write `sequences.parquet` from columns named as in the schema."""
    _write(folder / SEQUENCES_FILE, columns, SEQUENCES_SCHEMA)


def write_annotations(folder: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Write `annotations.parquet` from columns named as in the schema."""
    _write(folder / ANNOTATIONS_FILE, columns, ANNOTATIONS_SCHEMA)


def read_sequences(folder: Path) -> pd.DataFrame:
    """The sequences table of an `ingest` output.

    Raises:
        DataError: The file is missing, damaged, or has other columns or types.
    """
    return _read(folder / SEQUENCES_FILE, SEQUENCES_SCHEMA)


def read_annotations(folder: Path) -> pd.DataFrame:
    """The annotations table of an `ingest` output; raises as `read_sequences`."""
    return _read(folder / ANNOTATIONS_FILE, ANNOTATIONS_SCHEMA)


def _write(path: Path, columns: Mapping[str, Sequence[object]], schema: pa.Schema) -> None:
    table = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema=schema)
    pq.write_table(table, path, compression="zstd")


def _read(path: Path, schema: pa.Schema) -> pd.DataFrame:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"table '{path.name}' cannot be read ({' '.join(str(error).split())[:120]})",
            where=str(path),
            fix="run the stage again: dvc repro ingest",
        ) from error
    found = {field.name: field.type for field in table.schema}
    for field in schema:
        if field.name not in found:
            problem = f"has no column '{field.name}'"
        elif found[field.name] != field.type:
            problem = f"column '{field.name}' is {found[field.name]}, not {field.type}"
        else:
            continue
        raise DataError(f"table '{path.name}' {problem}", where=str(path), fix="run the stage again: dvc repro ingest")
    return table.select(schema.names).to_pandas()
