"""UniProt's flat text (`.dat`, `.txt`), plain or gzip, streamed through Biopython one entry at a time.

Biopython reads identity, name, lengths and sequence. The feature table is handed to the grammar of the TSV's feature
cells instead (`feature_cells`): a wrapped value is joined to what the TSV has in its cell, so that both formats give
the same features, and Biopython's reading loses quotes inside values. Lines that are not needed (references, comments,
cross-references) are checked for their line code and dropped, so memory holds the rest of one entry.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plmsae.errors import DataError
from plmsae.proteins.feature_cells import CellError, parse_cell
from plmsae.proteins.feature_types import TYPE_OF_KEY
from plmsae.proteins.lines import read_lines
from plmsae.proteins.records import (
    Feature,
    Protein,
    check_accession,
    check_length,
    check_residues,
    place_feature,
)

MAX_ENTRY_CHARS = 1 << 26
_LINE_CODE = re.compile(r"[A-Z]{2}(?:   |\s*$)|\*\*| {5}\S|//\s*$")
_NEEDED = ("ID", "AC", "DE", "SQ", "  ", "//")
_KEY = slice(5, 21)
_LEGACY_START = slice(13, 21)  # the position's columns until release 2019_10
_QUALIFIER = re.compile(r'/[a-z_]+="')
_EVIDENCE = re.compile(r"\s*\{ECO:[^}]*\}")
_FULL_NAME = re.compile(r"\bFull=(.*?);")
_SEQUENCE_CHANGES = {"VAR_SEQ", "VARIANT", "CONFLICT", "MUTAGEN"}
_AGAIN = "download the entry again"


@dataclass
class _Lines:
    """The lines of one entry that are kept, with their numbers."""

    start: int
    needed: list[str] = field(default_factory=list)
    features: list[tuple[int, str]] = field(default_factory=list)
    sequence: list[tuple[int, str]] = field(default_factory=list)
    num_chars: int = 0


def read_uniprot_text(path: Path) -> Iterator[Protein]:
    """Proteins of a file of UniProt entries, each from its `ID` line to its `//`.

    Raises:
        DataError: A line without a line code, an entry that is cut off or that Biopython cannot read, an illegal
            residue, a sequence that is not what its lengths or checksum say, a feature that cannot be read or lies
            outside its sequence, features in the columns used until 2019, or no entry at all.
    """
    entry: _Lines | None = None
    found = False
    for number, line in read_lines(path):
        if entry is None:
            if not line.strip():
                continue
            if not line.startswith("ID   "):
                raise DataError(
                    f"expected an entry, which starts with 'ID   ', not {line[:20]!r}",
                    where=f"{path}, line {number}",
                    fix=_AGAIN,
                )
            entry = _Lines(number)
        elif line.startswith("ID   "):
            raise _cut_off(entry, f"{path}, line {number}")
        _keep(entry, number, line, path)
        if line.startswith("//"):
            found = True
            yield _protein(entry, path)
            entry = None
    if entry is not None:
        raise _cut_off(entry, f"{path}, at its end")
    if not found:
        raise DataError("the file has no entries", where=str(path), fix="check that it is the right file")


def _cut_off(entry: _Lines, where: str) -> DataError:
    return DataError(
        f"the entry {_title(entry)} that starts in line {entry.start} does not end with '//': it was cut off",
        where=where,
        fix="download the file again",
    )


def _title(entry: _Lines) -> str:
    words = entry.needed[0][5:].split() if entry.needed else []
    return f"'{words[0][:40]}'" if words else "without a name"


def _keep(entry: _Lines, number: int, line: str, path: Path) -> None:
    code = line[:2]
    if not _LINE_CODE.match(line):
        raise DataError(
            f"the line has no line code: {line[:30]!r}",
            where=f"{path}, line {number}, entry {_title(entry)}",
            fix=_AGAIN,
        )
    entry.num_chars += len(line)
    if code == "FT":
        entry.features.append((number, line))
    elif code == "  ":
        entry.sequence.append((number, line))
        entry.needed.append(line)
    elif code in _NEEDED:
        entry.needed.append(line)
    else:
        entry.num_chars -= len(line)
    if entry.num_chars > MAX_ENTRY_CHARS:
        raise DataError(
            f"one entry has more than {MAX_ENTRY_CHARS >> 20} MiB",
            where=f"{path}, line {number}, entry {_title(entry)}",
            fix="this is not a file of UniProt entries; check the file",
        )


def _protein(entry: _Lines, path: Path) -> Protein:
    where = f"{path}, line {entry.start}, entry {_title(entry)}"
    record = _biopython(entry, where)
    accession = check_accession(record.accessions[0].strip() if record.accessions else "", path, entry.start)
    where = f"{path}, line {entry.start}, entry '{accession}'"
    before = 0
    for number, line in entry.sequence:
        residues = "".join(line.split())
        check_residues(residues, accession, path, number, before)
        before += len(residues)
    sequence: str = record.sequence
    check_length(sequence, str(record.sequence_length), accession, "length in the ID line", where)
    if record.seqinfo is None:
        raise DataError(f"entry '{accession}' has no SQ line", where=where, fix=_AGAIN)
    check_length(sequence, str(record.seqinfo[0]), accession, "length in the SQ line", where)
    if _crc64(sequence) != record.seqinfo[2].upper():
        raise DataError(f"the sequence of '{accession}' does not have its CRC64", where=where, fix=_AGAIN)
    features, num_unknown, num_isoform = _features(entry, accession, sequence, path)
    return Protein(
        accession,
        _name(record),
        sequence,
        entry.start,
        features,
        num_unknown_positions=num_unknown,
        num_isoform_features=num_isoform,
    )


def _biopython(entry: _Lines, where: str) -> Any:
    from Bio import SwissProt

    try:
        record = SwissProt.read(io.StringIO("\n".join(entry.needed) + "\n"))
    # What it raises for lines of another shape.
    except (ValueError, IndexError, KeyError, AssertionError, AttributeError, TypeError) as error:
        words = " ".join(str(error).split())[:120]
        raise DataError(
            f"the entry cannot be read: {words or type(error).__name__}", where=where, fix=_AGAIN
        ) from error
    return record


def _crc64(sequence: str) -> str:
    from Bio.SeqUtils.CheckSum import crc64

    return str(crc64(sequence)).removeprefix("CRC-")


def _name(record: Any) -> str:
    """The recommended or submitted name; the whole description of an entry from before names had parts (2008)."""
    description = _EVIDENCE.sub("", str(record.description)).strip()
    full = _FULL_NAME.search(description + ";")
    return full.group(1) if full else description.rstrip(".;") or str(record.entry_name)


def _features(entry: _Lines, accession: str, sequence: str, path: Path) -> tuple[tuple[Feature, ...], int, int]:
    """Features, and how many were left out for `?` and for another isoform."""
    features: list[Feature] = []
    num_unknown = num_isoform = 0
    for number, key, text in _unwrapped(entry, accession, path):
        if key not in TYPE_OF_KEY:
            continue
        where = f"{path}, line {number}, entry '{accession}'"
        try:
            cell = parse_cell(text, key)
        except CellError as error:
            raise DataError(f"the feature cannot be read: {error}", where=where, fix=_AGAIN) from error
        for raw in cell.features:
            note = raw.qualifiers.get("note", "")
            features.append(
                place_feature(
                    key,
                    TYPE_OF_KEY[key],
                    raw.start,
                    raw.end,
                    _without_breaks(note, key) if key in _SEQUENCE_CHANGES else note,
                    raw.qualifiers.get("ligand", ""),
                    sequence=sequence,
                    accession=accession,
                    where=where,
                )
            )
        num_unknown += cell.num_unknown_positions
        num_isoform += cell.num_isoform_features
    return tuple(features), num_unknown, num_isoform


def _unwrapped(entry: _Lines, accession: str, path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, key, text as in a cell of the TSV) of each feature."""
    start, key, parts = 0, "", list[str]()
    for number, line in entry.features:
        content = line[21:].strip()
        if head := line[_KEY].rstrip():
            if line[_LEGACY_START].strip():
                raise DataError(
                    f"the features of '{accession}' stand in the columns that were used until release 2019_10",
                    where=f"{path}, line {number}, entry '{accession}'",
                    fix="download the entry again; the layout of today has one qualifier per line",
                )
            if parts:
                yield start, key, _cell(parts, accession, f"{path}, line {start}")
            start, key, parts = number, head, [f"{head} {content}"]
        elif not parts:
            raise DataError("a feature without a key", where=f"{path}, line {number}, entry '{accession}'", fix=_AGAIN)
        elif _QUALIFIER.match(content) or len(parts) == 1:
            parts.append(content)
        else:
            parts[-1] = _joined(parts[-1], content)
    if parts:
        yield start, key, _cell(parts, accession, f"{path}, line {start}")


def _cell(parts: list[str], accession: str, where: str) -> str:
    """Location and qualifiers in one line. A quote that is missing would swallow the qualifiers behind it."""
    for part in parts[1:]:
        if not part.endswith('"') or _QUALIFIER.fullmatch(part):
            raise DataError(
                f"a value has no closing quote: {part[:40]!r}", where=f"{where}, entry '{accession}'", fix=_AGAIN
            )
    return "; ".join(parts)


def _joined(text: str, more: str) -> str:
    """Lines are broken at blanks, after hyphens and between the letters of `K -> R,Q`.

    The hyphen of `N- and C-terminal` had a blank behind it.
    """
    if text.endswith(",") and re.search(r"-> ?[A-Z,]+,$", text):
        return f"{text}{more}"
    after_hyphen = text.endswith("-") and not text.endswith(" -") and not more.startswith(("and ", "or "))
    return f"{text}{more}" if after_hyphen else f"{text} {more}"


def _without_breaks(note: str, key: str) -> str:
    """Long sequences of `A -> B (in Ref. 1)` and `A->B: Loses activity.` are broken anywhere: close the gaps."""
    head, mark, rest = note.partition(": " if key == "MUTAGEN" else " (")
    return re.sub(r"(?<=[A-Z]) (?=[A-Z])", "", head) + mark + rest if "->" in head else note
