"""FASTA and one-sequence-per-line text, streamed.

The reader is our own and not Biopython's because every message has to name the line, also inside a wrapped sequence;
the tests compare what it reads with `Bio.SeqIO`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plmsae.errors import DataError
from plmsae.proteins.lines import read_lines
from plmsae.proteins.records import Protein, check_accession, check_residues, is_clean

_UNIPROT_DATABASES = ("sp", "tr")


def read_fasta(path: Path) -> Iterator[Protein]:
    """Proteins of a FASTA file, gzip or not.

    Sequences may be wrapped, contain blanks and be in lower case (made upper case); one `*` at the end is taken off
    and marked. A header without a sequence yields an empty sequence. The accession is the second field of
    `sp|ACCESSION|NAME` and `tr|ACCESSION|NAME`, else the first word of the header.

    Raises:
        DataError: Text before the first header, a header without a name, an illegal residue, or no record at all.
    """
    accession, name, start, parts, length, stop = "", "", 0, list[str](), 0, 0
    for number, line in read_lines(path):
        if start and not stop and is_clean(line):  # nearly every line of a corpus
            parts.append(line)
            length += len(line)
        elif line.startswith(">"):
            if start:
                yield Protein(accession, name, "".join(parts), start, stop_removed=stop > 0)
            accession, name = split_header(line[1:])
            check_accession(accession, path, number)
            start, parts, length, stop = number, [], 0, 0
        elif text := "".join(line.split()).upper():
            if not start:
                raise DataError(
                    "there is text before the first header",
                    where=f"{path}, line {number}",
                    fix="a FASTA record starts with a line '>ACCESSION description'",
                )
            if stop:
                check_residues("*", accession, path, stop, length)
            stop = number if text.endswith("*") else 0
            text = text.removesuffix("*")
            check_residues(text, accession, path, number, length)
            parts.append(text)
            length += len(text)
    if not start:
        raise _empty(path, "a FASTA record")
    yield Protein(accession, name, "".join(parts), start, stop_removed=stop > 0)


def read_text(path: Path) -> Iterator[Protein]:
    """Proteins of a text file with one sequence per line; they are named `line<number>`. Blank lines are skipped.

    Raises:
        DataError: An illegal residue or no sequence at all.
    """
    found = False
    for number, line in read_lines(path):
        text = line.strip().upper()
        if text:
            found = True
            accession = f"line{number}"
            sequence = text.removesuffix("*")
            check_residues(sequence, accession, path, number)
            yield Protein(accession, "", sequence, number, stop_removed=len(sequence) < len(text))
    if not found:
        raise _empty(path, "a sequence")


def split_header(header: str) -> tuple[str, str]:
    """Accession and description of a FASTA header without its `>`."""
    words = header.split(maxsplit=1)
    first = words[0] if words else ""
    rest = words[1].strip() if len(words) > 1 else ""
    fields = first.split("|")
    if len(fields) == 3 and fields[0] in _UNIPROT_DATABASES:
        return fields[1], f"{fields[2]} {rest}".strip()
    return first, rest


def _empty(path: Path, what: str) -> DataError:
    return DataError(f"the file does not hold {what}", where=str(path), fix="check that it is the right file")
