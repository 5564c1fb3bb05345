"""The tables of a corpus, written as it comes: one row group of `sequences.parquet` per work unit.

A work unit is 1,000 sequences (the size of InterPLM's shards; Simon and Zou, 2024) of one split that follow each other
in the order of their keys, so each is a random sample of the corpus. A larger subset begins with the same units. A
worker reads unit `i` alone: `pyarrow.parquet.ParquetFile(path).read_row_group(i)`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plmsae.artifacts.atomic import write_text
from plmsae.errors import DataError
from plmsae.proteins.corpus import REASONS, Outcome
from plmsae.proteins.split import Split
from plmsae.proteins.tables import DROPPED_FILE, SEQUENCES_FILE, SEQUENCES_SCHEMA

UNITS_FILE = "units.tsv"
UNITS_COLUMNS = ("unit", "split", "first_row", "num_sequences", "num_residues", "sha256")


class CorpusWriter:
    """Writes `sequences.parquet` and, at the end, `units.tsv`; use as a context manager.

    Args:
        folder: Folder to write into.
        unit_size: Sequences of a work unit.

    Attributes:
        num_proteins: Split -> number of sequences.
        num_residues: Split -> number of residues.
        num_units: Number of work units.
    """

    def __init__(self, folder: Path, unit_size: int) -> None:
        self._folder, self._unit_size = folder, unit_size
        self._file = pq.ParquetWriter(folder / SEQUENCES_FILE, SEQUENCES_SCHEMA, compression="zstd")
        self._split: Split | None = None
        self._rows: list[tuple[str, str, str]] = []
        self._units = ["\t".join(UNITS_COLUMNS) + "\n"]
        self._names = array("Q")
        self.num_proteins: Counter[Split] = Counter()
        self.num_residues: Counter[Split] = Counter()

    @property
    def num_units(self) -> int:
        """Number of work units written."""
        return len(self._units) - 1

    def add(self, split: Split, accession: str, name: str, sequence: str) -> None:
        """Write a sequence; those of one split come together."""
        if self._rows and (split != self._split or len(self._rows) == self._unit_size):
            self._flush()
        self._split = split
        self._rows.append((accession, name, sequence))
        self._names.append(int.from_bytes(hashlib.blake2b(accession.encode(), digest_size=8).digest(), "big"))

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._flush()
        self._file.close()
        if kind is None:
            self._check_names()
            write_text(self._folder / UNITS_FILE, "".join(self._units))

    def _flush(self) -> None:
        split, num_rows = self._split, len(self._rows)
        assert split is not None
        accessions, names, sequences = zip(*self._rows, strict=True)
        lengths = [len(sequence) for sequence in sequences]
        columns = {
            "accession": accessions,
            "offset": [0] * num_rows,
            "sequence": sequences,
            "length": lengths,
            "cluster": accessions,
            "split": [split] * num_rows,
            "name": names,
        }
        table = pa.table(
            {name: pa.array(columns[name], SEQUENCES_SCHEMA.field(name).type) for name in SEQUENCES_SCHEMA.names},
            schema=SEQUENCES_SCHEMA,
        )
        self._file.write_table(table, row_group_size=num_rows)
        digest = hashlib.sha256("".join(f"{name}\t{text}\n" for name, _, text in self._rows).encode()).hexdigest()
        first_row = sum(self.num_proteins.values())
        number = self.num_proteins[split] // self._unit_size
        cells = (f"{split}-{number:06d}", split, first_row, num_rows, sum(lengths), digest)
        self._units.append("\t".join(map(str, cells)) + "\n")
        self.num_proteins[split] += num_rows
        self.num_residues[split] += sum(lengths)
        self._rows = []

    def _check_names(self) -> None:
        """Refuse an accession that stands twice; 8 bytes per sequence are kept for it."""
        keys, counts = np.unique(np.frombuffer(self._names, dtype=np.uint64), return_counts=True)
        if (counts == 1).all():
            return
        twice = {int(key) for key in keys[counts > 1]}
        seen: set[str] = set()
        for group in pq.ParquetFile(self._folder / SEQUENCES_FILE).iter_batches(columns=["accession"]):
            for accession in group.column("accession").to_pylist():
                key = int.from_bytes(hashlib.blake2b(accession.encode(), digest_size=8).digest(), "big")
                if key in twice and accession in seen:
                    raise DataError(
                        f"accession '{accession}' stands twice, with different sequences",
                        fix="remove or rename one of them",
                    )
                if key in twice:
                    seen.add(accession)


def write_corpus(folder: Path, outcomes: Iterable[Outcome], unit_size: int) -> tuple[CorpusWriter, dict[str, int]]:
    """Write the chosen sequences, and who was left out and why (`dropped.tsv`).

    Args:
        folder: Folder to write into.
        outcomes: As `CorpusSelection.outcomes` gives them.
        unit_size: Sequences of a work unit.

    Returns:
        The writer with its counts, and reason -> number of sequences that were left out.

    Raises:
        DataError: An accession stands twice, or what `outcomes` raises.
    """
    counts = dict.fromkeys(REASONS, 0)
    with CorpusWriter(folder, unit_size) as writer, (folder / DROPPED_FILE).open("w", encoding="utf-8") as lines:
        lines.write("accession\treason\n")
        for outcome in outcomes:
            if outcome.split is not None:
                writer.add(outcome.split, outcome.accession, outcome.name, outcome.sequence)
            else:
                counts[outcome.reason.partition(":")[0]] += 1
                lines.write(f"{outcome.accession}\t{outcome.reason}\n")
    return writer, counts
