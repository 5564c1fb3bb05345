"""The grammar of a feature cell in UniProt's REST TSV.

    DOMAIN 3..49; /note="F-box"; /evidence="ECO:0000255"; DOMAIN 60..>70; /note="SH3 1; truncated"

A cell is a list of features. A feature is a key, a location and qualifiers; `;` separates them (older exports leave it
out before a qualifier). Values stand in quotes; a quote inside is doubled or escaped with a backslash, and one that is
neither is taken as text if no qualifier or feature follows it. Locations count from 1 and include both ends:

- `5`, `3..49`; `<3..>49` says that the feature goes on beyond what is known: the stated numbers are used.
- `?`, `?3..49`, `3..?`: an end is not known. Such a feature is left out and counted.
- `P12345-2:3..5` counts along another isoform than the sequence of the entry. Left out and counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_QUALIFIER_OR_END = r"\s*(?:;|/[a-z_]+=|$)"
_HEAD = re.compile(r"\s*([A-Z][A-Z_]*)\s+([^\s;/\"]+)\s*(?:;|(?=/)|$)\s*")
_QUALIFIER = re.compile(
    r'/([a-z_]+)(?:="([^"\\]*(?:(?:""|\\"?)[^"\\]*)*)"(?=' + _QUALIFIER_OR_END + r")|(?=\s*(?:;|$)))\s*;?\s*"
)
_LOOSE_QUALIFIER = re.compile(
    r'/([a-z_]+)="(.*?)"(?=\s*(?:;?\s*/[a-z_]+=|;\s*[A-Z][A-Z_]*\s+(?:[^\s;:]+:)?[<>?\d][<>?.\d]*\s*(?:[;/]|$)|;?\s*$))\s*;?\s*',
    re.DOTALL,
)
_LOCATION = re.compile(r"(?:([^\s:]+):)?([<>]?\d+|\?\d*)(?:\.\.([<>]?\d+|\?\d*))?")


class CellError(ValueError):
    """A cell that does not follow the grammar; says what and at which character."""


@dataclass(slots=True)
class RawFeature:
    """One feature as it stands in the cell: 1-based inclusive positions and its qualifiers by name."""

    start: int
    end: int
    qualifiers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Cell:
    """A parsed cell: its features, and how many were left out because of `?` or another isoform."""

    features: list[RawFeature]
    num_unknown_positions: int = 0
    num_isoform_features: int = 0


def parse_cell(text: str, key: str) -> Cell:
    """Parse one cell.

    Args:
        text: The cell.
        key: Feature key of its column, e.g. `DOMAIN`.

    Raises:
        CellError: The text does not follow the grammar, or holds features of another key.
    """
    cell = Cell([])
    position = 0
    while position < len(text):
        head = _HEAD.match(text, position)
        if head is None:
            raise CellError(_describe("expected a feature", text, position))
        if head.group(1) != key:
            raise CellError(f"expected '{key}', not '{head.group(1)}', at character {position + 1}")
        feature = _locate(head.group(2), cell, text, position)
        position = head.end()
        while text.startswith("/", position):
            qualifier = _QUALIFIER.match(text, position) or _LOOSE_QUALIFIER.match(text, position)
            if qualifier is None:
                raise CellError(_describe("cannot read the qualifier", text, position))
            if feature is not None:
                value = qualifier.group(2) or ""
                feature.qualifiers[qualifier.group(1)] = value.replace('""', '"').replace('\\"', '"')
            position = qualifier.end()
        if feature is not None:
            cell.features.append(feature)
    return cell


def _locate(location: str, cell: Cell, text: str, position: int) -> RawFeature | None:
    found = _LOCATION.fullmatch(location)
    if found is None:
        raise CellError(_describe(f"'{location}' is not a location", text, position))
    isoform, first, last = found.groups()
    if isoform is not None:
        cell.num_isoform_features += 1
        return None
    if first.startswith("?") or (last or "").startswith("?"):
        cell.num_unknown_positions += 1
        return None
    start = int(first.strip("<>"))
    end = int(last.strip("<>")) if last else start
    if start > end:
        raise CellError(_describe(f"location '{location}' ends before it starts", text, position))
    return RawFeature(start, end)


def _describe(problem: str, text: str, position: int) -> str:
    shown = text[position : position + 40]
    return f"{problem} at character {position + 1}: {shown!r}"
