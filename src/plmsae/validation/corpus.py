"""The suites over a corpus, portion by portion: memory does not grow with it but for 16 bytes per sequence."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from plmsae.proteins.split import SPLITS
from plmsae.proteins.tables import SEQUENCES_FILE, SEQUENCES_SCHEMA
from plmsae.validation.engine import run_suite
from plmsae.validation.frames import sequence_frame
from plmsae.validation.rules import Finding, Rule
from plmsae.validation.suites import sequences_suite, splits_suite

PORTION_ROWS = 50_000


@dataclass
class CorpusCheck:
    """What was found in a corpus.

    Attributes:
        findings: One per rule, over all portions.
        num_proteins: Split -> number of sequences.
        num_residues: Number of residues in all.
        lengths: Number of residues -> number of sequences.
    """

    findings: list[Finding] = field(default_factory=list)
    num_proteins: Counter[str] = field(default_factory=Counter)
    num_residues: int = 0
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def num_sequences(self) -> int:
        """Number of sequences in all."""
        return sum(self.num_proteins.values())


def check_corpus(
    folder: Path,
    *,
    min_residues: int,
    max_residues: int,
    held_out_size: int,
    min_proteins: int = 1,
    num_examples: int = 5,
    portion_rows: int = PORTION_ROWS,
) -> CorpusCheck:
    """Findings over the table of sequences that `ingest` wrote of a corpus.

    Rules about several rows see one portion at a time; that neither an accession nor a sequence stands in two portions
    is looked up by hashes of 64 bits.

    Args:
        folder: Folder of `sequences.parquet`.
        min_residues: Least length of a sequence.
        max_residues: Greatest length of a sequence.
        held_out_size: Number of sequences that validation and test must each have.
        min_proteins: Least number of sequences in every split.
        num_examples: How many offending rows a finding shows.
        portion_rows: Rows that are checked together, give or take a work unit.
    """
    check = CorpusCheck()
    suite = sequences_suite(min_residues=min_residues, max_residues=max_residues)
    merged: list[Finding] = []
    hashes = {"accession": array("Q"), "sequence": array("Q")}
    for portion in _portions(folder / SEQUENCES_FILE, portion_rows):
        found = run_suite(suite, sequence_frame(portion), num_examples=num_examples)
        merged = [_both(*pair, num_examples) for pair in zip(merged, found, strict=True)] if merged else found
        check.num_proteins.update(portion["split"].fillna("").tolist())
        check.num_residues += int(portion["length"].sum())
        check.lengths.update(portion["length"].tolist())
        for column, keys in hashes.items():
            keys.extend(_hash(text) for text in portion[column].fillna(""))
    check.findings = [*merged, *(_distinct(suite.table, column, keys) for column, keys in hashes.items())]
    check.findings += run_suite(
        splits_suite(min_proteins=min_proteins), _split_frame(check, held_out_size), num_examples=num_examples
    )
    return check


def _portions(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    file = pq.ParquetFile(path)
    groups, size = list[int](), 0
    for number in range(file.num_row_groups):
        groups.append(number)
        size += file.metadata.row_group(number).num_rows
        if size >= rows or number == file.num_row_groups - 1:
            yield file.read_row_groups(groups, columns=SEQUENCES_SCHEMA.names).to_pandas()
            groups, size = [], 0
    if not file.num_row_groups:
        yield file.read().to_pandas()


def _both(one: Finding, other: Finding, num_examples: int) -> Finding:
    return replace(
        one,
        passed=one.passed and other.passed,
        num_checked=one.num_checked + other.num_checked,
        num_failed=one.num_failed + other.num_failed,
        observed=one.observed or other.observed,
        examples=(*one.examples, *other.examples)[:num_examples],
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _distinct(table: str, column: str, keys: array[int]) -> Finding:
    rule = Rule(f"{column}_once", f"no {column} stands twice in the corpus", "computed", {"column": column})
    num_failed = len(keys) - len(np.unique(np.frombuffer(keys, dtype=np.uint64))) if keys else 0
    return Finding(table, rule, not num_failed, len(keys), num_failed)


def _split_frame(check: CorpusCheck, held_out_size: int) -> pd.DataFrame:
    """The table that `splits_suite` looks at; of a corpus the sizes of the held-out sets are exact."""
    total = max(check.num_sequences, 1)
    expected = {"train": total - 2 * held_out_size, "valid": held_out_size, "test": held_out_size}
    return pd.DataFrame(
        {
            "split": split,
            "num_proteins": check.num_proteins[split],
            "num_clusters": check.num_proteins[split],
            "cluster_fraction": check.num_proteins[split] / total,
            "low": expected[split] / total,
            "high": expected[split] / total,
        }
        for split in SPLITS
    )
