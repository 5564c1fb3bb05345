"""Which format a file has, told by its content, and the reader for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from plmsae.errors import DataError
from plmsae.proteins.fasta import read_fasta, read_text
from plmsae.proteins.lines import read_lines
from plmsae.proteins.records import Protein
from plmsae.proteins.uniprot import read_uniprot_tsv

Format = Literal["uniprot_tsv", "fasta", "text"]
_READERS: dict[Format, Callable[[Path], Iterator[Protein]]] = {
    "uniprot_tsv": read_uniprot_tsv,
    "fasta": read_fasta,
    "text": read_text,
}
# First characters of formats that are met in the same places -> what to download instead.
_KNOWN_OTHERS = {
    "ID   ": "UniProt's flat text; download the entries as TSV",
    "<?xml": "XML; download the entries as TSV",
    "##gff": "GFF; download the entries as TSV",
    "{": "JSON; download the entries as TSV",
    "# STOCKHOLM": "an alignment; export it as FASTA without gaps",
    "HEADER": "a PDB file; export its sequence as FASTA",
}


def detect_format(path: Path) -> Format:
    """The format of a file, by its first line that is not blank; compression is looked through.

    Raises:
        DataError: The file is empty or of none of the formats.
    """
    first = next((line for _, line in read_lines(path) if line.strip()), None)
    if first is None:
        raise DataError("the file is empty", where=str(path), fix="check that it is the right file")
    if first.startswith(">"):
        return "fasta"
    if "\t" in first:
        return "uniprot_tsv"
    if first.strip().removesuffix("*").isascii() and first.strip().removesuffix("*").isalpha():
        return "text"
    other = next((what for start, what in _KNOWN_OTHERS.items() if first.startswith(start)), None)
    raise DataError(
        "the file looks like " + other.partition(";")[0] if other else f"the format is not known: {first[:40]!r}",
        where=f"{path}, line 1",
        fix=(other.partition("; ")[2] + "; " if other else "")
        + "formats read are FASTA, UniProt TSV and one sequence per line",
    )


def read_proteins(path: Path, format: Format | Literal["auto"] = "auto") -> Iterator[Protein]:
    """Stream the proteins of a file.

    Raises:
        UserError: The file does not exist.
        DataError: As the readers of the formats say.
    """
    return _READERS[detect_format(path) if format == "auto" else format](path)
