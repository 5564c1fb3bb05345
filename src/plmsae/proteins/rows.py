"""From chosen proteins to the columns of the two tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from plmsae.proteins.lengths import LongSequences, clip, stretches
from plmsae.proteins.records import Protein
from plmsae.proteins.split import Split

Columns = dict[str, list[object]]


class Rows(NamedTuple):
    """The columns of both tables, and how many annotations were left out because an equal one is there."""

    sequences: Columns
    annotations: Columns
    num_merged: int


def build_rows(
    proteins: Iterable[Protein],
    clusters: Mapping[str, str],
    splits: Mapping[str, Split],
    *,
    policy: LongSequences,
    max_residues: int,
    overlap: int = 0,
) -> Rows:
    """The columns of `sequences.parquet` and `annotations.parquet` (`plmsae.proteins.tables`).

    Every stretch of a protein is in the protein's split. Annotations of a row are sorted by start, end, type, note and
    ligand, so that equal data give equal files. Those equal in all five are one row: UniProt has two where a residue
    binds two ions of one kind (told apart by `/ligand_label`), and an instance must not count twice.

    Args:
        proteins: Sorted by accession.
        clusters: Accession -> representative.
        splits: Accession -> split.
        policy: What to do with sequences longer than `max_residues`.
        max_residues: The longest row.
        overlap: Residues that neighbouring windows share.
    """
    sequences: Columns = {
        name: [] for name in ("accession", "offset", "sequence", "length", "cluster", "split", "name")
    }
    annotations: Columns = {name: [] for name in ("accession", "offset", "type", "start", "end", "note", "ligand")}
    num_merged = 0
    for protein in proteins:
        accession = protein.accession
        for start, end in stretches(len(protein.sequence), policy=policy, max_residues=max_residues, overlap=overlap):
            row = (
                accession,
                start,
                protein.sequence[start:end],
                end - start,
                clusters[accession],
                splits[accession],
                protein.name,
            )
            for column, value in zip(sequences.values(), row, strict=True):
                column.append(value)
            clipped = clip(protein.features, start, end)
            kept = set(clipped)
            num_merged += len(clipped) - len(kept)
            for feature in sorted(kept, key=lambda f: (f.start, f.end, f.type, f.note, f.ligand)):
                for column, item in zip(annotations.values(), (accession, start, *feature), strict=True):
                    column.append(item)
    return Rows(sequences, annotations, num_merged)
