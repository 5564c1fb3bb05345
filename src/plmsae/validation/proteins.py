"""The suites over what `ingest` wrote, run together."""

from __future__ import annotations

import pandas as pd

from plmsae.validation.engine import run_suite
from plmsae.validation.frames import annotation_frame, sequence_frame, split_frame
from plmsae.validation.rules import Finding
from plmsae.validation.suites import annotations_suite, sequences_suite, splits_suite


def check_proteins(
    sequences: pd.DataFrame,
    annotations: pd.DataFrame,
    *,
    min_residues: int,
    max_residues: int,
    valid_fraction: float,
    test_fraction: float,
    min_proteins: int = 1,
    residue_facts: float = 0.95,
    num_examples: int = 5,
) -> list[Finding]:
    """Findings of every rule over sequences, splits and annotations.

    Args:
        sequences: `sequences.parquet`.
        annotations: `annotations.parquet`.
        min_residues: Least length of a row.
        max_residues: Greatest length of a row.
        valid_fraction: Expected fraction of clusters in validation.
        test_fraction: Expected fraction of clusters in test.
        min_proteins: Least number of proteins in every split.
        residue_facts: Least fraction of features on the residues that their kind calls for.
        num_examples: How many offending rows a finding shows.
    """
    checks = (
        (sequences_suite(min_residues=min_residues, max_residues=max_residues), sequence_frame(sequences)),
        (
            splits_suite(min_proteins=min_proteins),
            split_frame(sequences, valid_fraction=valid_fraction, test_fraction=test_fraction),
        ),
        (annotations_suite(residue_facts=residue_facts), annotation_frame(annotations, sequences)),
    )
    return [finding for suite, frame in checks for finding in run_suite(suite, frame, num_examples=num_examples)]
