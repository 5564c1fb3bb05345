"""Swiss-Prot annotations -> residue labels exactly as InterPLM's released code makes them (commit 5f4cbf9).

For numbers that can be compared with InterPLM's; our own protocol is in `labels`. What differs, and what that does to
the scores, is in docs/how-to/interplm-compat.md. The labels are made from the feature cells of UniProt's table and not
from `annotations.parquet`: they depend on the order of the annotations in a cell, on equal annotations and on those of
other isoforms, none of which `ingest` keeps.

Source: Simon & Zou 2024; `extract_annotations.py`, `parsing_utils.py` and `concept_constants.py` of
https://github.com/ElanaPearl/InterPLM.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from plmsae.errors import DataError
from plmsae.evaluation.residue_labels import Sparse

# Column of the table -> key in its cells, and the word after which InterPLM looks for the subtypes that it counts.
NAMED = {
    "Active site": ("ACT_SITE", "note"),
    "Binding site": ("BINDING", "ligand"),
    "Cofactor": ("COFACTOR", "Name"),
    "Glycosylation": ("CARBOHYD", "note"),
    "Modified residue": ("MOD_RES", "note"),
    "Transit peptide": ("TRANSIT", "note"),
    "Compositional bias": ("COMPBIAS", "note"),
    "Domain [FT]": ("DOMAIN", "note"),
    "Region": ("REGION", "note"),
    "Zinc finger": ("ZN_FING", "note"),
    "Motif": ("MOTIF", "note"),
    "Signal peptide": ("SIGNAL", "note"),
}
STRETCHES = ("Turn", "Helix", "Beta strand", "Coiled coil", "Lipidation")
PAIRS = ("Disulfide bond",)
COLUMNS = (*NAMED, *STRETCHES, *PAIRS)
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
OTHER_LETTER = "Other"
ANY = "any"
# Recall counts residues where a concept's name contains one of these.
PER_RESIDUE = ("Active site", "Cofactor", "Glycosylation", "Modified residue", "amino_acid", "Disulfide bond")
NOT_EVALUATED = frozenset({"Region_any", "Modified residue_any", "Domain_any", "Compositional bias_any", "Motif_any"})
_NOTE = re.compile(r'/note="([^"]+)"')
Subtypes = Mapping[str, Sequence[str]]
Ints = NDArray[np.int64]


def per_residue(name: str) -> bool:
    """Whether recall of a concept counts residues rather than domains; decided by its name."""
    return any(part in name for part in PER_RESIDUE)


def read_table(path: Path, accessions: Sequence[str], sequences: Sequence[str]) -> pd.DataFrame:
    """The rows of some proteins of UniProt's REST TSV, plain or gzip, in the order asked for.

    Args:
        path: The table, with the columns `Entry`, `Sequence` and `COLUMNS`.
        accessions: Proteins.
        sequences: Their sequences, which must be those of the table.

    Raises:
        DataError: The table cannot be read, lacks a column or a protein, or has another sequence.
    """
    where = str(path)
    wanted = ["Entry", "Sequence", *COLUMNS]
    try:
        table = pd.read_csv(path, sep="\t", usecols=lambda name: name in wanted, dtype=object)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"the table cannot be read ({' '.join(str(error).split())[:120]})",
            where=where,
            fix="give UniProt's REST TSV, as it was downloaded",
        ) from error
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise DataError(
            f"column '{missing[0]}' is missing",
            where=where,
            fix="download the table with all columns that InterPLM reads: docs/how-to/interplm-compat.md",
        )
    table = table.drop_duplicates("Entry").set_index("Entry")
    absent = [name for name in accessions if name not in table.index]
    if absent:
        raise DataError(
            f"the table has no row of '{absent[0]}' ({len(absent)} proteins are missing)",
            where=where,
            fix="give the table that ingest read",
        )
    table = table.loc[list(accessions)]
    for name, ours, theirs in zip(accessions, sequences, table["Sequence"], strict=True):
        if ours != theirs:
            raise DataError(
                f"'{name}' has another sequence in the table than in sequences.parquet",
                where=where,
                fix="InterPLM knows whole proteins only: set ingest.long_sequences to drop, and give ingest's table",
            )
    return table.reset_index()


def preprocessed(table: pd.DataFrame, num_shards: int, *, max_residues: int = 1022) -> list[pd.DataFrame]:
    """InterPLM's choice and split of proteins: a shuffle with its seed, three filters, and equal consecutive shards.

    Args:
        table: UniProt's table with `Length`, `Sequence` and `AlphaFoldDB`.
        num_shards: Shards.
        max_residues: The longest protein that is kept.
    """
    shuffled = table.sample(frac=1, random_state=42).reset_index(drop=True)
    kept = shuffled[(shuffled["Length"].astype(int) <= max_residues) & shuffled["AlphaFoldDB"].notna()]
    kept = kept.drop_duplicates("Sequence").reset_index(drop=True)
    sizes = np.full(num_shards, len(kept) // num_shards)
    sizes[: len(kept) % num_shards] += 1
    ends = np.cumsum(sizes)
    return [kept.iloc[end - size : end].reset_index(drop=True) for size, end in zip(sizes, ends, strict=True)]


def subtypes(table: pd.DataFrame, min_instances: int) -> dict[str, list[str]]:
    """Subtypes of each named column that become concepts: the frequent ones, from most to least, and `any`.

    What stands after the word is counted, from any isoform and at any position. Where the word is missing, the count
    is of a piece of the location (`1..22; /evidence` counts for `22`); no label has such a name.

    Args:
        table: All proteins of the evaluation, with `COLUMNS`.
        min_instances: Occurrences that a subtype needs.
    """
    found = {}
    for column, (key, word) in NAMED.items():
        names: list[str] = []
        for cell in table[column].dropna():
            for entry in cell.split(key)[1:]:
                # -1 if the word is missing: what follows starts at the fixed place behind it.
                rest = entry[entry.find(word) + len(word) + 1 :]
                name = rest[: rest.find(";")].strip('"')
                if "/evidence" not in name:
                    names.append(name)
        counts = pd.Series(names, dtype=object).value_counts()
        found[column] = [name for name in counts[counts >= min_instances].index if name not in ("", ANY)] + [ANY]
    return found


def concept_names(options: Subtypes) -> list[str]:
    """Names of all concepts of `subtypes`, in InterPLM's order; the letters are concepts, too."""
    names = [f"{column}_{name}" for column, of in options.items() for name in of] + [*STRETCHES, *PAIRS]
    cleaned = [name.replace("_binary", "").replace(" [FT]", "") for name in names]
    return cleaned + [f"amino_acid_{letter}" for letter in (*LETTERS, OTHER_LETTER)]


def label_values(table: pd.DataFrame, options: Subtypes) -> Sparse:
    """Labels of the proteins of one shard.

    Each annotation of a concept has the next number of the shard, and all its residues get it: where annotations of a
    concept overlap, the later one of the cell keeps the residue. Ends of disulfide bonds and letters are 1.

    Args:
        table: Proteins with `Sequence` and `COLUMNS`.
        options: `subtypes` of all shards.

    Returns:
        [R, C] CSR int32, 0 where there is no label.
    """
    places = {(column, name): number for number, (column, name) in enumerate(_pairs(options))}
    counters = [1] * len(places)
    keys = {column: _key(table[column]) for column in COLUMNS}
    letters = {letter: len(places) + number for number, letter in enumerate(LETTERS)}
    pieces: list[tuple[Ints, Ints, Ints]] = []
    start = 0
    for row in table[["Sequence", *COLUMNS]].itertuples(index=False):
        sequence, *cells = row
        length = len(sequence)
        marks: dict[int, Ints] = {}
        for column, cell in zip(COLUMNS, cells, strict=True):
            if not isinstance(cell, str):
                continue
            for entry in cell.split(f"{keys[column]} ")[1:]:
                concepts = _concepts(entry, column, places)
                residues = _residues(entry, length, column in PAIRS)
                if residues is None:
                    continue
                for concept in concepts:
                    values = marks.setdefault(concept, np.zeros(length, dtype=np.int64))
                    values[residues] = 1 if column in PAIRS else counters[concept]
                for concept in concepts:
                    counters[concept] += 1
        for concept, values in marks.items():
            (at,) = np.nonzero(values)
            pieces.append((start + at, np.full(len(at), concept), values[at]))
        other = len(places) + len(LETTERS)
        codes = np.array([letters.get(letter, other) for letter in sequence], dtype=np.int64)
        pieces.append((np.arange(start, start + length), codes, np.ones(length, dtype=np.int64)))
        start += length
    rows, columns, values = (np.concatenate(part) for part in zip(*pieces, strict=True))
    shape = (start, len(places) + len(LETTERS) + 1)
    return sparse.csr_matrix((values.astype(np.int32), (rows, columns)), shape=shape)


def _pairs(options: Subtypes) -> Iterator[tuple[str, str]]:
    for column, names in options.items():
        yield from ((column, name) for name in names)
    yield from ((column, "") for column in (*STRETCHES, *PAIRS))


def _key(cells: pd.Series) -> str:
    """The first word of the shard's first cell (`COFACTOR:` with its colon): what InterPLM splits cells at."""
    present = cells.dropna()
    return str(present.iloc[0]).split(" ")[0] if len(present) else ""


def _concepts(entry: str, column: str, places: Mapping[tuple[str, str], int]) -> tuple[int, ...]:
    """Concepts of an annotation: none without a note, or with one that is not frequent."""
    if column not in NAMED:
        return (places[column, ""],)
    note = _NOTE.search(entry)
    name = note.group(1).split(";")[0] if note else None
    return (places[column, name], places[column, ANY]) if name and (column, name) in places else ()


def _residues(entry: str, length: int, paired: bool) -> Ints | None:
    """0-based residues of an annotation that lie in the sequence; None if InterPLM cannot read its position."""
    text = entry.split(";")[0]
    if ":" in text or "?" in text:
        return None
    first, dots, last = text.partition("..")
    try:
        # `<` and `>` are read at the ends of a range only: `<5` alone is an annotation that is left out.
        low, high = (int(first.strip("<")), int(last.strip(">"))) if dots else (int(text), int(text))
    except ValueError:
        return None
    residues = np.array([low, high]) if paired else np.arange(low, high + 1)
    return residues[(residues >= 1) & (residues <= length)] - 1
