"""UniProt REST TSV, plain or gzip, streamed: one protein per row, its feature columns parsed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from plmsae.errors import DataError, did_you_mean
from plmsae.proteins.feature_cells import CellError, parse_cell
from plmsae.proteins.feature_types import FEATURE_KEYS, TYPES
from plmsae.proteins.lines import read_lines
from plmsae.proteins.records import Feature, Protein, check_accession, check_length, check_residues, place_feature

REQUIRED_COLUMNS = ("Entry", "Sequence")
_NAME_COLUMNS = ("Protein names", "Entry Name")
_DOWNLOAD = "https://rest.uniprot.org/uniprotkb/stream?format=tsv&compressed=true&fields=accession,sequence,length,..."


def read_uniprot_tsv(path: Path) -> Iterator[Protein]:
    """Proteins of a table with UniProt's column names; columns that are not read are ignored.

    `Entry` and `Sequence` are required, `Length` is compared with the sequence, `Protein names` or `Entry Name` give
    the name, and every column of `FEATURE_KEYS` gives features.

    Raises:
        DataError: Missing or repeated columns, a row with another number of cells, an illegal residue, a length that
            does not fit, a feature cell that cannot be read, a feature outside its sequence, or no row at all.
    """
    lines = read_lines(path)
    header = next(lines, None)
    if header is None:
        raise DataError("the file is empty", where=str(path), fix="check that it is the right file")
    columns = _header(names := [_unquote(cell).strip() for cell in header[1].split("\t")], path)
    width = len(names)
    found = False
    for number, line in lines:
        if not line:
            continue
        cells = [_unquote(cell) for cell in line.split("\t")]
        if len(cells) != width:
            raise DataError(
                f"the row has {len(cells)} cells, the header {width}",
                where=f"{path}, line {number}",
                fix="download the table again; it may have been cut off or edited",
            )
        found = True
        yield _protein(cells, columns, path, number)
    if not found:
        raise DataError("the table has no rows", where=str(path), fix="check the query that the table came from")


def feature_columns(path: Path) -> list[str]:
    """The columns of a table that are read as features, in the table's order."""
    _, line = next(read_lines(path))
    return [cell for cell in map(_unquote, line.split("\t")) if cell in FEATURE_KEYS]


def _header(names: Sequence[str], path: Path) -> dict[str, int]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"column '{repeated[0]}' stands twice", where=f"{path}, line 1", fix="remove one of them")
    missing = [name for name in REQUIRED_COLUMNS if name not in names]
    if missing:
        guesses = "; ".join(f"'{name}': {did_you_mean(name, names)}" for name in missing)
        raise DataError(
            "missing column" + "s" * (len(missing) > 1) + " " + ", ".join(f"'{name}'" for name in missing),
            where=f"{path}, line 1",
            fix=f"{guesses}; the columns are those of {_DOWNLOAD}",
        )
    return {name: index for index, name in enumerate(names)}


def _protein(cells: Sequence[str], columns: Mapping[str, int], path: Path, line: int) -> Protein:
    accession = check_accession(cells[columns["Entry"]].strip(), path, line)
    residues = cells[columns["Sequence"]].strip().upper()
    sequence = residues.removesuffix("*")
    check_residues(sequence, accession, path, line)
    stated = cells[columns["Length"]].strip() if "Length" in columns else ""
    if stated:
        check_length(sequence, stated, accession, "Length", f"{path}, line {line}")
    name = next((cells[columns[column]] for column in _NAME_COLUMNS if column in columns), "")
    features: list[Feature] = []
    num_unknown = num_isoform = 0
    for column, key in FEATURE_KEYS.items():
        text = cells[columns[column]] if column in columns else ""
        if not text:
            continue
        where = f"{path}, line {line}, entry '{accession}', column '{column}'"
        try:
            cell = parse_cell(text, key)
        except CellError as error:
            raise DataError(
                f"the features cannot be read: {error}", where=where, fix="download the entry again"
            ) from error
        features += [
            place_feature(
                key,
                TYPES[column],
                raw.start,
                raw.end,
                raw.qualifiers.get("note", ""),
                raw.qualifiers.get("ligand", ""),
                sequence=sequence,
                accession=accession,
                where=where,
            )
            for raw in cell.features
        ]
        num_unknown += cell.num_unknown_positions
        num_isoform += cell.num_isoform_features
    return Protein(
        accession,
        name,
        sequence,
        line,
        tuple(features),
        num_unknown_positions=num_unknown,
        num_isoform_features=num_isoform,
        stop_removed=len(sequence) < len(residues),
    )


def _unquote(cell: str) -> str:
    """Undo the quotes that spreadsheet programs and csv writers put around a cell with quotes inside."""
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        inner = cell[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return cell
