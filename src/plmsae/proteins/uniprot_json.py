"""UniProt's JSON (rest.uniprot.org), plain or gzip, streamed: what the REST TSV reader finds, from the other format.

Notes are put together as the TSV and the flat text have them: `A -> V (in Ref. 1)`, `K->R,Q: Loses activity.`,
`Missing (in isoform 2)`. Evidence, cross-references and feature ids are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plmsae.errors import DataError
from plmsae.proteins.feature_types import KEY_OF_JSON, TYPE_OF_KEY
from plmsae.proteins.json_stream import read_objects
from plmsae.proteins.records import (
    Feature,
    Protein,
    check_accession,
    check_length,
    check_residues,
    place_feature,
)

_ALTERNATIVES = {
    "VAR_SEQ": (" -> ", ","),
    "VARIANT": (" -> ", ","),
    "CONFLICT": (" -> ", " or "),
    "MUTAGEN": ("->", ","),
}
_AGAIN = "download the entry again"


def read_uniprot_json(path: Path) -> Iterator[Protein]:
    """Proteins of a JSON file: `{"results": [...]}`, a list of entries, JSON Lines, or one entry.

    An entry needs `primaryAccession` and `sequence.value`; length and MD5 of the sequence are compared where given.

    Raises:
        DataError: The file is not JSON or is cut off, an entry lacks what is needed or has it in another type, an
            illegal residue, a sequence that is not what its length or checksum says, a feature outside its sequence,
            or no entry at all.
    """
    found = False
    for line, entry in read_objects(path, "results"):
        found = True
        yield _protein(entry, path, line)
    if not found:
        raise DataError("the file has no entries", where=str(path), fix="check the query that the file came from")


def _protein(entry: Mapping[str, Any], path: Path, line: int) -> Protein:
    if "primaryAccession" not in entry:
        raise DataError(
            "the object is not a UniProt entry: it has no 'primaryAccession'",
            where=f"{path}, line {line}",
            fix="download the entries from https://rest.uniprot.org/uniprotkb with format=json",
        )
    accession = check_accession(str(entry["primaryAccession"]), path, line)
    reader = _Entry(accession, f"{path}, line {line}, entry '{accession}'")
    sequence = reader.get(entry, "sequence", dict)
    residues = reader.get(sequence, "value", str).upper()
    check_residues(residues, accession, path, line)
    if "length" in sequence:
        check_length(residues, str(sequence["length"]), accession, "length", reader.where)
    if (
        "md5" in sequence
        and hashlib.md5(residues.encode(), usedforsecurity=False).hexdigest() != str(sequence["md5"]).lower()
    ):
        raise DataError(f"the sequence of '{accession}' does not have its MD5", where=reader.where, fix=_AGAIN)
    features: list[Feature] = []
    num_unknown = num_isoform = 0
    for number, item in enumerate(reader.get(entry, "features", list) if "features" in entry else [], 1):
        where = f"{reader.where}, feature {number}"
        feature = _Entry(accession, where)
        if not isinstance(item, dict):
            feature.fail("is not an object")
        key = KEY_OF_JSON.get(feature.get(item, "type", str))
        if key is None:
            continue
        location = feature.get(item, "location", dict)
        if location.get("sequence"):  # it counts along another isoform
            num_isoform += 1
            continue
        start, end = feature.position(location, "start"), feature.position(location, "end")
        if start is None or end is None:
            num_unknown += 1
            continue
        if start > end:
            feature.fail(f"location {start}..{end} ends before it starts")
        ligand = feature.get(item, "ligand", dict) if "ligand" in item else {}
        features.append(
            place_feature(
                key,
                TYPE_OF_KEY[key],
                start,
                end,
                feature.note(item, key),
                feature.text(ligand, "name"),
                sequence=residues,
                accession=accession,
                where=where,
            )
        )
    return Protein(
        accession,
        reader.name(entry),
        residues,
        line,
        tuple(features),
        num_unknown_positions=num_unknown,
        num_isoform_features=num_isoform,
    )


class _Entry:
    """Reads values of an entry or of a feature; a value of another type than UniProt's becomes a `DataError`."""

    def __init__(self, accession: str, where: str) -> None:
        self.accession = accession
        self.where = where

    def fail(self, problem: str) -> None:
        raise DataError(f"entry '{self.accession}' cannot be read: {problem}", where=self.where, fix=_AGAIN)

    def get(self, item: Mapping[str, Any], name: str, kind: type) -> Any:
        """A value that must be there."""
        value = item.get(name)
        if not isinstance(value, kind):
            self.fail(f"there is no '{name}'" if value is None else f"'{name}' is {type(value).__name__}")
        return value

    def text(self, item: Mapping[str, Any], name: str) -> str:
        """A text that may be missing."""
        value = item.get(name)
        if value is None:
            return ""
        return str(self.get(item, name, str))

    def position(self, location: Mapping[str, Any], name: str) -> int | None:
        """A 1-based position; None if it is not known (`?`, `?12`). What lies beyond it (`<`, `>`) is not looked at."""
        end = self.get(location, name, dict)
        modifier = self.text(end, "modifier")
        if modifier in {"UNKNOWN", "UNSURE", "UNCERTAIN"} or (end.get("value") is None and modifier != "EXACT"):
            return None
        value = end.get("value")
        if type(value) is not int:
            self.fail(f"{name} {value!r} is not a position")
        return int(value)  # type: ignore[arg-type]

    def note(self, item: Mapping[str, Any], key: str) -> str:
        """The `/note` of the other formats."""
        text = self.text(item, "description")
        if key not in _ALTERNATIVES or "alternativeSequence" not in item:
            return text
        arrow, joiner = _ALTERNATIVES[key]
        change = self.get(item, "alternativeSequence", dict)
        alternatives = self.get(change, "alternativeSequences", list) if "alternativeSequences" in change else []
        head = "Missing"
        if alternatives:
            head = self.text(change, "originalSequence") + arrow + joiner.join(map(str, alternatives))
        if not text:
            return head
        return f"{head}: {text}" if key == "MUTAGEN" else f"{head} ({text})"

    def name(self, entry: Mapping[str, Any]) -> str:
        """The recommended name, or the first submitted one; free text, so that another shape is not an error."""
        names = entry.get("proteinDescription")
        if isinstance(names, dict):
            submitted = names.get("submissionNames")
            first = submitted[0] if isinstance(submitted, list) and submitted else None
            for name in (names.get("recommendedName"), first):
                full = name.get("fullName") if isinstance(name, dict) else None
                if isinstance(full, dict) and isinstance(full.get("value"), str):
                    return str(full["value"])
        return str(entry.get("uniProtkbId", ""))
