"""The numbers that InterPLM's released code reports, from our activations and proteins and UniProt's table.

Labels, counts, scores, selection and report are InterPLM's with its defects (docs/how-to/interplm-compat.md), so that
results can be put beside published ones. The validation split is its validation set and the test split its test set,
one shard each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse
from torch import Tensor

from plmsae.errors import UserError
from plmsae.evaluation.concept_data import SPLITS, Split
from plmsae.evaluation.counts import Counts
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.interplm_labels import concept_names, label_values, read_table, subtypes
from plmsae.evaluation.interplm_scores import SCORE_COLUMNS, EvaluationSet, Report, evaluated, report, score_tables
from plmsae.evaluation.passes import run_split
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.units import Units

PREFIX = "interplm_"


@dataclass(frozen=True)
class Options:
    """What InterPLM's scripts take.

    Attributes:
        table: UniProt's REST TSV with the feature cells of the proteins.
        min_instances: Occurrences that a subtype needs to be a concept (`min_required_instances`).
        min_residues: A concept with more labelled residues is scored (`min_aa_per_concept`).
        min_domains: One with more domains, too (`min_domains_per_concept`).
        normalised: Divide activations by each latent's maximum before they are compared with the thresholds. InterPLM
            means to and does not: its normalised SAE only carries the maxima along.
    """

    table: Path
    min_instances: int
    min_residues: int
    min_domains: int
    normalised: bool


class OwnScale(Units):
    """Units as the SAE gives them: not divided by their maxima."""

    def normalised(self, indices: Tensor, values: Tensor) -> Sparse:
        """Activations [R, n], CSR fp32, of what `encode` returned."""
        num_rows, per_row = indices.shape
        pointers = np.arange(0, num_rows * per_row + 1, per_row)
        return sparse.csr_matrix(
            (values.numpy().reshape(-1), indices.numpy().reshape(-1), pointers), shape=(num_rows, self.num_units)
        )


def evaluate(
    inputs: Inputs,
    splits: Sequence[Split],
    output: Path,
    options: Options,
    *,
    thresholds: Sequence[float],
    threads: int,
) -> Outcome:
    """Score the SAE as InterPLM does and write what it writes.

    Args:
        inputs: SAE and model.
        splits: Validation and test: their proteins and batches.
        output: Folder that gets `interplm_scores_valid.parquet`, `interplm_scores_test.parquet`,
            `interplm_best.csv` (its heldout_top_pairings.csv) and `interplm_pairs.csv` (heldout_all_top_pairings.csv).
        options: What its scripts take.
        thresholds: Ascending thresholds.
        threads: Batches that are run at once; the numbers do not depend on it.

    Raises:
        UserError: A protein has several rows: it was cut into windows.
        DataError: See `interplm_labels.read_table`.
    """
    sets = evaluation_sets([split.proteins for split in splits], options)
    units = (Units if options.normalised else OwnScale)("sae", inputs.sae)
    counted: list[tuple[Counts, EvaluationSet]] = []
    for name, split, found in zip(SPLITS, splits, sets, strict=True):
        as_theirs = Split(split.proteins, split.batches, found.labels)
        run = run_split(inputs, as_theirs, [units], thresholds, title="as InterPLM", threads=threads)
        counted.append((run.counts[0], found))
        write_tables(output / f"{PREFIX}scores_{name}.parquet", score_tables(run.counts[0], found, thresholds))
    valid, test = counted
    reported = report(valid, test, thresholds)
    for name, table in (("best", reported.best), ("pairs", reported.pairs)):
        table.to_csv(output / f"{PREFIX}{name}.csv", index=False, lineterminator="\n")
    metrics = {f"{PREFIX}{name}": value for name, value in reported.metrics.items()}
    metrics[f"{PREFIX}num_concepts"] = len(sets[0].names)
    return Outcome(metrics, _summary(reported, len(sets[0].names)))


def evaluation_sets(splits: Sequence[pd.DataFrame], options: Options) -> list[EvaluationSet]:
    """The labels of the concepts that InterPLM would score, each split one shard.

    Args:
        splits: Rows of `sequences.parquet`, in the order in which they are run.
        options: What InterPLM's scripts take.

    Raises:
        UserError: A protein has several rows.
        DataError: See `interplm_labels.read_table`.
    """
    for proteins in splits:
        if proteins["accession"].duplicated().any():
            twice = proteins.loc[proteins["accession"].duplicated(), "accession"].iloc[0]
            raise UserError(
                f"'{twice}' stands in several windows, and InterPLM knows whole proteins only",
                where="interplm_table",
                fix="set ingest.long_sequences to drop, or interplm_table to null",
            )
    rows = pd.concat(splits, ignore_index=True)
    table = read_table(options.table, rows["accession"].tolist(), rows["sequence"].tolist())
    kinds = subtypes(table, options.min_instances)
    names = concept_names(kinds)
    parts, start = [], 0
    for proteins in splits:
        parts.append(label_values(table.iloc[start : start + len(proteins)], kinds))
        start += len(proteins)
    kept = evaluated(
        names, [[part] for part in parts], min_residues=options.min_residues, min_domains=options.min_domains
    )
    chosen = [names[number] for number in kept]
    return [
        EvaluationSet.build(chosen, [part[:, kept]], proteins["length"].to_numpy())
        for part, proteins in zip(parts, splits, strict=True)
    ]


def write_tables(path: Path, tables: Iterator[pd.DataFrame]) -> None:
    """Write tables of the same columns as one Parquet file; one table is in memory at a time."""
    schema = pa.schema(
        [("concept", pa.string()), ("feature", pa.int64())]
        + [(name, pa.float64()) for name in ("threshold_pct", *SCORE_COLUMNS)]
        + [("is_aa_level_concept", pa.bool_())]
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False))


def _summary(found: Report, num_concepts: int) -> str:
    metrics = found.metrics
    average = f"{metrics['average_best_f1']:.3f}" if len(found.best) else "not defined"
    return (
        f"By InterPLM's protocol, defects included, on the same proteins and {num_concepts} concepts: average best F1 "
        f"per concept {average} (over the {metrics['num_concepts_in_mean']} of "
        f"{metrics['num_concepts_compared']} concepts that did not drop out), {metrics['num_concepts_identified']} "
        f"concepts identified, {metrics['num_features_with_concept']} latents associated with a concept. These numbers "
        "are for comparison with InterPLM's only: see docs/how-to/interplm-compat.md."
    )
