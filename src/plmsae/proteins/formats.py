"""Which format a file has, told by its content, and the reader for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from plmsae.errors import DataError
from plmsae.proteins.fasta import read_fasta, read_text
from plmsae.proteins.flat_text import read_uniprot_text
from plmsae.proteins.lines import read_chunks
from plmsae.proteins.records import Protein
from plmsae.proteins.uniprot import read_uniprot_tsv
from plmsae.proteins.uniprot_json import read_uniprot_json

Format = Literal["uniprot_tsv", "uniprot_text", "uniprot_json", "fasta", "text"]
_READERS: dict[Format, Callable[[Path], Iterator[Protein]]] = {
    "uniprot_tsv": read_uniprot_tsv,
    "uniprot_text": read_uniprot_text,
    "uniprot_json": read_uniprot_json,
    "fasta": read_fasta,
    "text": read_text,
}
# First characters of formats that are met in the same places -> what to do instead.
_KNOWN_OTHERS = {
    "<?xml": "XML; download the entries as TSV, flat text or JSON",
    "##gff": "GFF; download the entries as TSV, flat text or JSON",
    "# STOCKHOLM": "an alignment; export it as FASTA without gaps",
    "HEADER": "a PDB file; export its sequence as FASTA",
}


def detect_format(path: Path) -> Format:
    """The format of a file, by its first line that is not blank; compression is looked through.

    Raises:
        DataError: The file is empty or of none of the formats.
    """
    # In pieces, since a file of JSON may be one endless line.
    piece = next((text for text in read_chunks(path) if text.strip()), "").lstrip()
    if not piece:
        raise DataError("the file is empty", where=str(path), fix="check that it is the right file")
    first = piece.splitlines()[0]
    if first.startswith(">"):
        return "fasta"
    if first.startswith(("{", "[")):
        return "uniprot_json"
    if first.startswith("ID   "):
        return "uniprot_text"
    if "\t" in first:
        return "uniprot_tsv"
    if first.strip().removesuffix("*").isascii() and first.strip().removesuffix("*").isalpha():
        return "text"
    other = next((what for start, what in _KNOWN_OTHERS.items() if first.startswith(start)), None)
    raise DataError(
        "the file looks like " + other.partition(";")[0] if other else f"the format is not known: {first[:40]!r}",
        where=f"{path}, line 1",
        fix=(other.partition("; ")[2] + "; " if other else "")
        + "formats read are FASTA, UniProt TSV, flat text and JSON, and one sequence per line",
    )


def read_proteins(path: Path, format: Format | Literal["auto"] = "auto") -> Iterator[Protein]:
    """Stream the proteins of a file.

    Raises:
        UserError: The file does not exist.
        DataError: As the readers of the formats say.
    """
    return _READERS[detect_format(path) if format == "auto" else format](path)
