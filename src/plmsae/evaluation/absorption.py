"""Absorption and splitting of Swiss-Prot concepts: how many latents one takes, and which stand in for its main latent.

Definitions: `concept_spread`. Three passes: validation once for the scores of all latents and once for the patterns of
the candidates, test once for what is reported. Intervals are percentile bootstraps over test proteins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation import concept_data
from plmsae.evaluation.absorption_report import Spread, nothing_to_score, report
from plmsae.evaluation.bootstrap import group_sums
from plmsae.evaluation.concept_compare import Resampling, score_rows
from plmsae.evaluation.concept_patterns import BitPredictors, Ints, PatternCounter, tally
from plmsae.evaluation.concept_spread import (
    Absorber,
    SpreadRules,
    Union,
    absorbers,
    absorption_counts,
    candidates,
    greedy_union,
)
from plmsae.evaluation.counts import RowCounts, count_rows
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.passes import Batch, run_split
from plmsae.evaluation.residue_labels import sums_by_row
from plmsae.evaluation.scores import f1_of
from plmsae.evaluation.units import Units

_TITLE = "evaluate@absorption"


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    max_proteins: int | None,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    max_latents: int,
    share: float,
    min_precision: float,
    max_share: float,
    min_residues: int,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Measure how concepts are spread over latents.

    Args:
        inputs: Proteins, annotations, SAE and model.
        output: Folder that gets the tables and the figure.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_instances: Annotations that a concept needs in each split.
        min_proteins: Proteins with one that it needs in each split.
        thresholds: Ascending thresholds on normalised activations; a latent is silent at or below the lowest.
        max_latents: The most latents in a union.
        share: Share of the best union's F1 that is enough.
        min_precision: Precision of an absorber.
        max_share: The largest share of a concept's residues that a sub-class may be.
        min_residues: Labelled validation residues that an absorber fires on.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset and bootstrap.
    """
    data = concept_data.load(
        inputs,
        max_proteins=max_proteins,
        min_instances=min_instances,
        min_proteins=min_proteins,
        max_tokens=max_tokens,
        seed=seed,
    )
    if not data.concepts:
        return nothing_to_score(data, output, min_instances, min_proteins)
    rules = SpreadRules(max_latents, share, min_precision, max_share, min_residues)
    how = Resampling(num_resamples, confidence, seed)
    methods = [Units("sae", inputs.sae)]
    levels = np.asarray(thresholds, dtype=np.float32)
    num_residues, num_instances = data.valid.labels.num_residues_of(), data.valid.labels.num_instances_of()

    counts = run_split(inputs, data.valid, methods, thresholds, title=_TITLE, threads=threads).counts[0]
    f1 = f1_of(counts, num_residues, num_instances, data.residue_level)
    predictors = candidates(counts, f1, num_residues, num_instances, data.residue_level, rules)
    del f1

    def look(batch: Batch) -> Ints:
        return tally(predictors.masks(batch.activations[0], levels), batch.labels)

    counter = PatternCounter(len(data.concepts))
    for seen in run_split(
        inputs, data.valid, methods, thresholds, title=_TITLE, threads=threads, observe=look, count=False
    ).observed:
        counter.add(seen)
    unions: list[Union] = []
    found: list[list[Absorber]] = []
    for concept, patterns in enumerate(counter.result()):
        units, residues = predictors.units[concept], int(num_residues[concept])
        level = bool(data.residue_level[concept])
        unions.append(greedy_union(patterns, units, residues, int(num_instances[concept]), level, rules))
        found.append(absorbers(patterns, units, residues))
    observer = _Observer(predictors, levels, unions, found, max_latents)
    test = run_split(
        inputs, data.test, methods, thresholds, title=_TITLE, threads=threads, observe=observer, count=False
    )
    rows = [RowCounts.concatenate([seen[0][step] for seen in test.observed]) for step in range(max_latents)]
    tested = [score_rows(each, data.test.labels, data.test.owners, data.residue_level, how) for each in rows]
    sums = group_sums(np.concatenate([seen[1] for seen in test.observed], axis=0), data.test.owners)
    spread = Spread(predictors, unions, found, tested, sums)
    return report(data, spread, counts, thresholds, rules, how, inputs.sae.config, output)


@dataclass(frozen=True)
class _Observer:
    """Counts of the unions and of absorption on each sequence of a test batch."""

    predictors: BitPredictors
    levels: NDArray[np.float32]
    unions: Sequence[Union]
    absorbers: Sequence[Sequence[Absorber]]
    max_latents: int

    def __call__(self, batch: Batch) -> tuple[list[RowCounts], Ints]:
        masks = self.predictors.masks(batch.activations[0], self.levels)
        sets = np.stack([union.sets(self.max_latents) for union in self.unions])
        every = np.arange(masks.shape[1])
        rows = [count_rows((masks & sets[:, step]) != 0, every, batch.labels) for step in range(self.max_latents)]
        bits = np.array([sum(1 << each.bit for each in found) for found in self.absorbers], dtype=np.int64)
        parts = absorption_counts(masks, batch.labels.residues.toarray() > 0, bits)
        return rows, np.stack([sums_by_row(part, batch.labels.row_starts) for part in parts], axis=1)
