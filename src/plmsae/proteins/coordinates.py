"""Cα coordinates of the rows of `sequences.parquet`, from the `structures.parquet` that `ingest` writes.

Of several structures of one protein the one that gives most residues of the row a place counts, of equal ones the first
by name of structure and chain.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from plmsae.errors import DataError, UserError
from plmsae.proteins.structure_tables import STRUCTURES_FILE, STRUCTURES_SCHEMA

_COLUMNS = ["accession", "structure", "chain", "position", "x", "y", "z"]
_NAMES = ["accession", "structure", "chain"]


def read_coordinates(folder: Path, proteins: pd.DataFrame) -> list[NDArray[np.float64] | None]:
    """Coordinates of rows.

    Args:
        folder: Output folder of `ingest`.
        proteins: Rows of `sequences.parquet`: `accession`, `offset`, `length`.

    Returns:
        Per row [length, 3] in Å, NaN where the structure has no Cα; None for a row without any.

    Raises:
        UserError: `ingest` was run without structures.
        DataError: The table is damaged, or names a place that is not a number.
    """
    path = folder / STRUCTURES_FILE
    if not path.is_file():
        raise UserError(
            "there are no structures",
            where=str(path),
            fix="set ingest.alphafold: true, or ingest.structures to a folder of PDB or mmCIF files, and run ingest",
        )
    try:
        table = pq.read_table(path, columns=_COLUMNS, read_dictionary=_NAMES)
        wanted = pa.array(proteins["accession"].unique(), pa.string())
        table = table.filter(pc.is_in(table["accession"].cast(pa.string()), wanted)).to_pandas()
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DataError(
            f"the structures cannot be read, or lack one of {', '.join(STRUCTURES_SCHEMA.names)}",
            where=str(path),
            fix="run ingest again: dvc repro ingest",
        ) from error
    places = table[["x", "y", "z"]].to_numpy(dtype=np.float64)
    if not np.isfinite(places).all():
        wrong = table.iloc[int(np.flatnonzero(~np.isfinite(places).all(axis=1))[0])]
        raise DataError(
            f"residue {wrong['position'] + 1} of {wrong['accession']} has a place that is not a number",
            where=str(path),
            fix="run ingest again: dvc repro ingest",
        )
    position = table["position"].to_numpy(dtype=np.int64)
    groups: dict[str, list[NDArray[np.int64]]] = {}
    chains = table.groupby(_NAMES, observed=True, sort=True).indices
    for (accession, _, _), members in sorted(chains.items()):
        groups.setdefault(str(accession), []).append(np.asarray(members, dtype=np.int64))
    found: list[NDArray[np.float64] | None] = []
    for accession, offset, length in zip(proteins["accession"], proteins["offset"], proteins["length"], strict=True):
        best, most = None, 0
        for members in groups.get(accession, []):
            within = position[members] - int(offset)
            inside = (within >= 0) & (within < length)
            if inside.sum() > most:
                best, most = (members[inside], within[inside]), int(inside.sum())
        if best is None:
            found.append(None)
            continue
        xyz = np.full((int(length), 3), np.nan)
        xyz[best[1]] = places[best[0]]
        found.append(xyz)
    return found
