"""From chosen proteins to the columns of the two tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plmsae.proteins.lengths import LongSequences, clip, stretches
from plmsae.proteins.records import Protein
from plmsae.proteins.split import Split

Columns = dict[str, list[object]]


def build_rows(
    proteins: Iterable[Protein],
    clusters: Mapping[str, str],
    splits: Mapping[str, Split],
    *,
    policy: LongSequences,
    max_residues: int,
    overlap: int = 0,
) -> tuple[Columns, Columns]:
    """The columns of `sequences.parquet` and `annotations.parquet` (`plmsae.proteins.tables`).

    Every stretch of a protein is in the protein's split. Annotations are sorted by start, end, type, note and ligand
    within their row, so that equal data give equal files.

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
            kept = clip(protein.features, start, end)
            for feature in sorted(kept, key=lambda f: (f.start, f.end, f.type, f.note, f.ligand)):
                for column, item in zip(annotations.values(), (accession, start, *feature), strict=True):
                    column.append(item)
    return sequences, annotations
