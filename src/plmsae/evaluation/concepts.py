"""Concepts: which Swiss-Prot annotations single latents predict, beside the neurons and the residue's letter alone.

InterPLM's protocol (Simon & Zou 2024) on splits separated by homology. On the validation split the unit and the
threshold with the highest F1 are selected for each concept; both are carried to the test split unchanged, and a concept
that is missed counts as 0. All methods are scored on the same residues and resampled with the same proteins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from plmsae.evaluation import concept_data
from plmsae.evaluation.concept_compare import Resampling, score_rows
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_report import MethodResult, nothing_to_score, report
from plmsae.evaluation.counts import RowCounts, count_rows
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.passes import Predictors, run_split
from plmsae.evaluation.residue_letters import letter_codes, letters_text, select_letters
from plmsae.evaluation.scores import NO_LATENT, best_concepts, confirmed_pairs, f1_of, select
from plmsae.evaluation.units import Units, neurons

_TITLE = "evaluate@concepts"
F1_BOUND = 0.5  # InterPLM's bound for a latent that "has" a concept


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    max_proteins: int | None,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    concepts_per_latent: int,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Score the SAE, the neurons and the residue letters against the concepts of the annotations.

    Args:
        inputs: Proteins, annotations, SAE and model.
        output: Folder that gets the tables and the figure.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_instances: Annotations that a concept needs in each split.
        min_proteins: Proteins with one that it needs in each split.
        thresholds: Ascending thresholds on normalised activations.
        concepts_per_latent: Concepts listed for each latent.
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
    data.left_out.to_csv(output / "left_out.csv", index=False, lineterminator="\n")
    if not data.concepts:
        return nothing_to_score(data, output, min_instances, min_proteins)
    how = Resampling(num_resamples, confidence, seed)
    methods = [Units("sae", inputs.sae), Units("neurons", neurons(inputs))]
    residues_valid, instances_valid = data.valid.labels.num_residues_of(), data.valid.labels.num_instances_of()
    residues_test, instances_test = data.test.labels.num_residues_of(), data.test.labels.num_instances_of()

    valid = run_split(inputs, data.valid, methods, thresholds, title=_TITLE, threads=threads)
    f1_valid = [f1_of(each, residues_valid, instances_valid, data.residue_level) for each in valid.counts]
    del valid  # counts are as large as the F1 they became
    selections = [select(f1) for f1 in f1_valid]
    predictors = [Predictors.of(selection) for selection in selections]
    test = run_split(inputs, data.test, methods, thresholds, title=_TITLE, threads=threads, predictors=predictors)
    f1_test = [f1_of(each, residues_test, instances_test, data.residue_level) for each in test.counts]
    test.counts.clear()

    results = []
    for method, selection, found, again, counted in zip(methods, selections, f1_valid, f1_test, test.rows, strict=True):
        some = selection.latents != NO_LATENT
        results.append(
            MethodResult(
                name=method.method,
                units=tuple(method.unit_name(int(unit)) if unit != NO_LATENT else "" for unit in selection.latents),
                latents=selection.latents,
                thresholds=np.where(some, np.asarray(thresholds)[selection.thresholds], np.nan),
                f1_valid=selection.f1,
                tested=score_rows(counted, data.test.labels, data.test.owners, data.residue_level, how),
                pairs=confirmed_pairs(found, again, F1_BOUND),
            )
        )
    results.append(residue_letters(data, how))
    best = best_concepts(f1_valid[0], f1_test[0], concepts_per_latent)
    return report(data, results, best, thresholds, how, inputs.sae.config, output)


def residue_letters(data: ConceptData, how: Resampling) -> MethodResult:
    """The predictor that sees only the letter, selected and tested like the others."""
    every = np.arange(len(data.concepts))
    chosen = select_letters(letter_codes(data.valid.proteins["sequence"]), data.valid.labels, data.residue_level)
    tested = []
    for split in (data.valid, data.test):
        codes = letter_codes(split.proteins["sequence"])
        pieces = []
        for first, last in pairwise(split.batches):
            low, high = split.labels.row_starts[first], split.labels.row_starts[last]
            # A letter that is not an amino acid has code -1: the extra column, which no set holds.
            marked = np.pad(chosen, ((0, 0), (0, 1)))[:, codes[low:high]].T
            pieces.append(count_rows(marked, every, split.labels.batch(first, last)))
        tested.append(score_rows(RowCounts.concatenate(pieces), split.labels, split.owners, data.residue_level, how))
    return MethodResult(
        name="residue",
        units=tuple(letters_text(row) for row in chosen),
        latents=np.full(len(data.concepts), NO_LATENT),
        thresholds=np.full(len(data.concepts), np.nan),
        f1_valid=tested[0].scores.f1,
        tested=tested[1],
        pairs=None,
    )
