"""The same made-up entries as UniProt's TSV, flat text and JSON would hold them, written without our own code.

Sequence checksums are left to Biopython and hashlib.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

from Bio.SeqUtils.CheckSum import crc64

# Feature key -> (column of the TSV, type in the JSON), written down by hand from UniProt's documentation.
KINDS = {
    "ACT_SITE": ("Active site", "Active site"),
    "BINDING": ("Binding site", "Binding site"),
    "CHAIN": ("Chain", "Chain"),
    "CONFLICT": ("Sequence conflict", "Sequence conflict"),
    "CROSSLNK": ("Cross-link", "Cross-link"),
    "DISULFID": ("Disulfide bond", "Disulfide bond"),
    "DNA_BIND": ("DNA binding", "DNA binding"),
    "DOMAIN": ("Domain [FT]", "Domain"),
    "HELIX": ("Helix", "Helix"),
    "MUTAGEN": ("Mutagenesis", "Mutagenesis"),
    "SIGNAL": ("Signal peptide", "Signal"),
    "STRAND": ("Beta strand", "Beta strand"),
    "TOPO_DOM": ("Topological domain", "Topological domain"),
    "VARIANT": ("Natural variant", "Natural variant"),
    "VAR_SEQ": ("Alternative sequence", "Alternative sequence"),
    "ZN_FING": ("Zinc finger", "Zinc finger"),
}
CHANGES = ("CONFLICT", "MUTAGEN", "VARIANT", "VAR_SEQ")


@dataclass
class Item:
    """A feature: 1-based positions, each with `<`, `>` or `?` before it, or `?` alone."""

    key: str
    start: str
    end: str
    note: str = ""
    ligand: str = ""
    isoform: str = ""
    change: tuple[str, tuple[str, ...]] | None = None  # original, alternatives; none: it is missing

    @property
    def location(self) -> str:
        span = self.start if self.start == self.end else f"{self.start}..{self.end}"
        return f"{self.isoform}:{span}" if self.isoform else span

    @property
    def whole_note(self) -> str:
        if self.key not in CHANGES or self.change is None:
            return self.note
        original, alternatives = self.change
        arrow, joiner = "->" if self.key == "MUTAGEN" else " -> ", " or " if self.key == "CONFLICT" else ","
        head = f"{original}{arrow}{joiner.join(alternatives)}" if alternatives else "Missing"
        if not self.note:
            return head
        return f"{head}: {self.note}" if self.key == "MUTAGEN" else f"{head} ({self.note})"


@dataclass
class Entry:
    """An entry."""

    accession: str
    name: str
    sequence: str
    items: list[Item] = field(default_factory=list)


def tsv(entries: list[Entry]) -> str:
    columns = [column for column, _ in KINDS.values()]
    lines = ["\t".join(["Entry", "Protein names", "Length", "Sequence", *columns])]
    for entry in entries:
        cells = [entry.accession, entry.name, str(len(entry.sequence)), entry.sequence]
        for key in KINDS:
            features = []
            for item in entry.items:
                if item.key == key:
                    parts = [f"{key} {item.location}"]
                    parts += [f'/note="{quoted(item.whole_note)}"'] if item.whole_note else []
                    parts += [f'/ligand="{quoted(item.ligand)}"'] if item.ligand else []
                    features.append("; ".join([*parts, '/evidence="ECO:0000269|PubMed:1"']))
            cells.append("; ".join(features))
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    return text.replace('"', '""')


def flat(entries: list[Entry]) -> str:
    return "".join(flat_entry(entry) for entry in entries)


def flat_entry(entry: Entry) -> str:
    size = len(entry.sequence)
    lines = [
        f"ID   {entry.accession}_TEST            Reviewed; {size:>10} AA.",
        f"AC   {entry.accession}; Q00000;",
        "DT   01-JAN-1990, integrated into UniProtKB/Swiss-Prot.",
        f"DE   RecName: Full={entry.name} {{ECO:0000303|PubMed:1}};",
        "DE            Short=X;",
        "CC   -!- FUNCTION: None that is known; MISCELLANEOUS: '//' may stand in a comment.",
        "RA   Somebody A.B.;",
    ]
    for item in entry.items:
        lines.append(f"FT   {item.key:<16}{item.location}")
        if item.whole_note:
            lines += wrapped(f'/note="{quoted(item.whole_note)}"')
        if item.ligand:
            lines += wrapped(f'/ligand="{quoted(item.ligand)}"')
        lines += wrapped('/evidence="ECO:0000269|PubMed:1234567, ECO:0000269|PubMed:7654321, ECO:0000305"')
    lines.append(f"SQ   SEQUENCE   {size} AA;  0 MW;  {crc64(entry.sequence).removeprefix('CRC-')} CRC64;")
    for row in textwrap.wrap(entry.sequence, 60):
        lines.append("     " + " ".join(textwrap.wrap(row, 10)))
    return "\n".join([*lines, "//"]) + "\n"


def wrapped(text: str) -> list[str]:
    """As UniProt breaks lines: at blanks, after hyphens between letters, and long words where the line ends."""
    rows = textwrap.wrap(text, 59, break_on_hyphens=True, break_long_words=True, drop_whitespace=True)
    return [f"FT                   {row}" for row in rows]


def as_json(entries: list[Entry]) -> list[dict[str, Any]]:
    return [json_entry(entry) for entry in entries]


def json_entry(entry: Entry) -> dict[str, Any]:
    return {
        "entryType": "UniProtKB reviewed (Swiss-Prot)",
        "primaryAccession": entry.accession,
        "proteinDescription": {"recommendedName": {"fullName": {"evidences": [], "value": entry.name}}},
        "comments": [{"texts": [{"value": 'a { in a "comment" ]'}]}],
        "features": [json_item(item) for item in entry.items],
        "sequence": {
            "value": entry.sequence,
            "length": len(entry.sequence),
            "md5": hashlib.md5(entry.sequence.encode(), usedforsecurity=False).hexdigest().upper(),
        },
    }


def json_item(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": KINDS[item.key][1],
        "location": {"start": json_end(item.start), "end": json_end(item.end)},
        "description": item.note,
        "evidences": [{"evidenceCode": "ECO:0000269", "source": "PubMed", "id": "1"}],
    }
    if item.isoform:
        found["location"]["sequence"] = item.isoform
    if item.ligand:
        found["ligand"] = {"name": item.ligand, "id": "ChEBI:CHEBI:1"}
    if item.change is not None:
        original, alternatives = item.change
        found["alternativeSequence"] = (
            {"originalSequence": original, "alternativeSequences": list(alternatives)} if alternatives else {}
        )
    return found


def json_end(text: str) -> dict[str, Any]:
    digits = re.sub(r"\D", "", text)
    modifier = {"<": "OUTSIDE", ">": "OUTSIDE", "?": "UNSURE" if digits else "UNKNOWN"}.get(text[0], "EXACT")
    return {"value": int(digits) if digits else None, "modifier": modifier}


def json_text(entries: list[Entry], form: str) -> str:
    items = as_json(entries)
    if form == "results":
        return json.dumps({"facets": [{"name": "x"}], "results": items})
    if form == "list":
        return json.dumps(items, indent=2)
    return "".join(json.dumps(item) + "\n" for item in items)
