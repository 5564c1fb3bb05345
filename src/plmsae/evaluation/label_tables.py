"""Labels that a user brings: a CSV file with the columns `accession`, `label`, and where they belong.

    accession,position,residue,label
    P12345,17,H,zinc
    P12345,21,H,zinc
    Q99999,1,M,

With `position` (1-based, UniProt's numbering) a row labels a residue, without that column a protein. `residue` is
optional and then compared with the sequence. A row with an empty label says that residue or protein is known to have
none of the labels. Several rows may give several labels to one residue or protein.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.errors import DataError, did_you_mean

_COLUMNS = ("accession", "position", "residue", "label")
_FIX = "correct the line; the format is in docs/how-to/probes.md"


@dataclass(frozen=True)
class LabelTable:
    """What a table says about the proteins that are there.

    Attributes:
        labels: Distinct labels, sorted.
        protein_level: Whether whole proteins are labelled.
        rows: Columns accession, position (0-based in the protein, 0 for whole proteins) and label (an index into
            `labels`, -1 for none of them), in the order of the file.
        num_unknown: Rows about proteins that are not in the sequences; they are left out.
    """

    labels: tuple[str, ...]
    protein_level: bool
    rows: pd.DataFrame
    num_unknown: int


def read_label_table(path: Path, sequences: pd.DataFrame) -> LabelTable:
    """Read and check a table row by row.

    Args:
        path: The CSV file, UTF-8.
        sequences: Rows of `sequences.parquet` with accession, offset and sequence.

    Raises:
        DataError: The file cannot be read, a column is missing, unknown or stands twice, a row has another number of
            cells, an empty accession, a position that is no number or outside the protein, another residue than the
            sequence has there, stands twice, or no row is about a protein that is there. Names the line.
    """
    lines = _lines(path)
    header = next(lines, (1, []))[1]
    names = _header([cell.strip() for cell in header], path)
    letters = _letters(sequences)
    protein_level = "position" not in names
    accessions, positions, labels = [], [], []
    seen: dict[tuple[str, int, str], int] = {}
    num_unknown = 0
    for line, cells in lines:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise DataError(f"the row has {len(cells)} cells, the header {len(header)}", where=where, fix=_FIX)
        cell = {name: cells[place].strip() for name, place in names.items()}
        if not cell["accession"]:
            raise DataError("the accession is empty", where=where, fix=_FIX)
        position = 0 if protein_level else _position(cell["position"], where)
        key = (cell["accession"], position, cell["label"])
        if key in seen:
            raise DataError(f"the row stands twice, first in line {seen[key]}", where=where, fix="remove one of them")
        seen[key] = line
        if cell["accession"] not in letters:
            num_unknown += 1
            continue
        if not protein_level:
            _check_residue(letters[cell["accession"]], position, cell.get("residue", ""), cell["accession"], where)
        accessions.append(cell["accession"])
        positions.append(position)
        labels.append(cell["label"])
    if not accessions:
        raise DataError(
            f"none of the {num_unknown} rows is about one of the {len(letters)} proteins of ingest",
            where=str(path),
            fix="use the accessions of outputs/ingest/sequences.parquet",
        )
    distinct = sorted({label for label in labels if label})
    if not distinct:
        raise DataError("no row has a label", where=str(path), fix=_FIX)
    numbers = {"": -1} | {label: number for number, label in enumerate(distinct)}
    rows = pd.DataFrame(
        {
            "accession": accessions,
            "position": np.asarray(positions, dtype=np.int64),
            "label": np.asarray([numbers[label] for label in labels], dtype=np.int64),
        }
    )
    return LabelTable(tuple(distinct), protein_level, rows, num_unknown)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"the label table cannot be read ({error})", where=str(path), fix="save it as CSV in UTF-8"
        ) from error


def _header(names: list[str], path: Path) -> dict[str, int]:
    where = f"{path}, line 1"
    for name in names:
        if name not in _COLUMNS:
            raise DataError(f"unknown column '{name}'", where=where, fix=did_you_mean(name, _COLUMNS))
        if names.count(name) > 1:
            raise DataError(f"column '{name}' stands twice", where=where, fix="remove one of them")
    for name in ("accession", "label"):
        if name not in names:
            raise DataError(f"column '{name}' is missing", where=where, fix=f"columns are {', '.join(_COLUMNS)}")
    if "residue" in names and "position" not in names:
        raise DataError("column 'residue' without 'position'", where=where, fix="add the positions")
    return {name: place for place, name in enumerate(names)}


def _letters(sequences: pd.DataFrame) -> dict[str, dict[int, str]]:
    """Accession -> 0-based offset of each kept stretch -> its residues."""
    found: dict[str, dict[int, str]] = {}
    for accession, offset, sequence in zip(sequences["accession"], sequences["offset"], sequences["sequence"]):
        found.setdefault(accession, {})[int(offset)] = sequence
    return found


def _position(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise DataError(f"position {text!r} is not a whole number from 1", where=where, fix=_FIX)
    return int(text) - 1


def _check_residue(stretches: dict[int, str], position: int, residue: str, accession: str, where: str) -> None:
    for offset, letters in stretches.items():
        if offset <= position < offset + len(letters):
            found = letters[position - offset]
            if residue and residue.upper() != found:
                raise DataError(
                    f"residue {position + 1} of '{accession}' is {found}, not {residue}",
                    where=where,
                    fix="positions count from 1 along UniProt's canonical sequence",
                )
            return
    last = max(offset + len(letters) for offset, letters in stretches.items())
    raise DataError(
        f"position {position + 1} of '{accession}' is outside the residues that ingest kept (up to {last})",
        where=where,
        fix="positions count from 1 along UniProt's canonical sequence",
    )
