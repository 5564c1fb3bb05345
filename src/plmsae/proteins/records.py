"""What a reader yields: a protein with its features, and where in the file it stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plmsae.errors import DataError

STANDARD_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
# Unknown, Asx, Glx, selenocysteine, pyrrolysine: in UniProt and in the vocabulary of ESM-2.
OTHER_RESIDUES = "XBZUO"
_ILLEGAL = re.compile(f"[^{STANDARD_RESIDUES}{OTHER_RESIDUES}]")
_CLEAN = re.compile(f"[{STANDARD_RESIDUES}{OTHER_RESIDUES}]+")


class Feature(NamedTuple):
    """One positional annotation.

    Attributes:
        type: Canonical type name, e.g. `Binding site`.
        start: 0-based first residue.
        end: 0-based end, exclusive. For the types of `PAIR_TYPES` the two residues are `start` and `end - 1`.
        note: Text of `/note`, or empty.
        ligand: Text of `/ligand`, or empty.
    """

    type: str
    start: int
    end: int
    note: str = ""
    ligand: str = ""


@dataclass(frozen=True, slots=True)
class Protein:
    """One record of an input file.

    Attributes:
        accession: Unique name.
        name: Free text for people: the protein's name or the rest of a FASTA header.
        sequence: Upper-case residues; may be empty (a header without a sequence).
        line: 1-based line at which the record starts.
        features: Its annotations.
        num_unknown_positions: Annotations left out because a position is `?`.
        num_isoform_features: Annotations left out because they count along another isoform.
        stop_removed: True if a `*` was taken off the end.
    """

    accession: str
    name: str
    sequence: str
    line: int
    features: tuple[Feature, ...] = ()
    num_unknown_positions: int = 0
    num_isoform_features: int = 0
    stop_removed: bool = False


def place_feature(
    key: str, kind: str, start: int, end: int, note: str, ligand: str, *, sequence: str, accession: str, where: str
) -> Feature:
    """A feature from its 1-based inclusive positions.

    Args:
        key: UniProt's feature key, for the message.
        kind: Canonical type name.
        start: First residue.
        end: Last residue.
        note: Text of the note.
        ligand: Text of the ligand.
        sequence: The sequence it must lie in.
        accession: For the message.
        where: For the message.

    Raises:
        DataError: It lies outside the sequence.
    """
    if start < 1 or end > len(sequence):
        location = f"{start}..{end}" if end != start else f"{start}"
        raise DataError(
            f"annotation {key} {location} of '{accession}' is outside its sequence of {len(sequence)} residues",
            where=where,
            fix="download the entry again; sequence and annotations may be of different versions",
        )
    return Feature(kind, start - 1, end, note, ligand)


def check_length(sequence: str, stated: str, accession: str, what: str, where: str) -> None:
    """Refuse a sequence that is not as long as its record says.

    Raises:
        DataError: The lengths differ.
    """
    if stated != str(len(sequence)):
        raise DataError(
            f"'{accession}' has {len(sequence)} residues but its {what} is '{stated}'",
            where=where,
            fix="download the entry again; sequence and annotations may be of different versions",
        )


def check_accession(accession: str, path: Path, line: int) -> str:
    """The accession itself, once it is known to be usable as a key in tables and messages.

    Raises:
        DataError: It is empty, longer than 200 characters or not printable.
    """
    if not accession:
        raise DataError("a record has no name", where=f"{path}, line {line}", fix="give every record an accession")
    if len(accession) > 200 or not accession.isprintable() or any(letter.isspace() for letter in accession):
        raise DataError(
            f"{accession[:40]!r} cannot be an accession",
            where=f"{path}, line {line}",
            fix="use at most 200 printable characters without spaces",
        )
    return accession


def is_clean(text: str) -> bool:
    """True for one or more upper-case residues and nothing else."""
    return _CLEAN.fullmatch(text) is not None


def check_residues(sequence: str, accession: str, path: Path, line: int, before: int = 0) -> None:
    """Refuse letters that are not residues.

    Args:
        sequence: Upper-case text.
        accession: For the message.
        path: File, for the message.
        line: 1-based line of `sequence` in the file.
        before: Number of residues of the record that stand on earlier lines.

    Raises:
        DataError: Names the letter and its 1-based position in the record.
    """
    found = _ILLEGAL.search(sequence)
    if found is None:
        return
    letter = found.group()
    fixes = {
        "-": "remove the gaps: an alignment is not a set of sequences",
        ".": "remove the gaps: an alignment is not a set of sequences",
        "*": "'*' is only allowed at the end; split the translation at its stop codons",
        "J": "write X (unknown), or L or I",
    }
    raise DataError(
        f"illegal residue {letter!r} at position {before + found.start() + 1} of '{accession}'",
        where=f"{path}, line {line}",
        fix=fixes.get(letter, f"residues are {STANDARD_RESIDUES} and {OTHER_RESIDUES}; write X for an unknown one"),
    )
