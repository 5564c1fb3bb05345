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
from plmsae.evaluation.concept_data import ConceptData, Split
from plmsae.evaluation.concept_report import MethodResult, nothing_to_score, report
from plmsae.evaluation.counts import ConceptCounter, Counts, RowCounts, count_rows
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.residue_labels import Labels, Sparse
from plmsae.evaluation.residue_letters import letter_codes, letters_text, select_letters
from plmsae.evaluation.scores import NO_LATENT, Selection, best_concepts, confirmed_pairs, score_counts, select
from plmsae.evaluation.units import Units, neurons, predicted
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress

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

    counts, _ = _count(inputs, data.valid, methods, thresholds, None, threads)
    f1_valid = [score_counts(each, residues_valid, instances_valid, data.residue_level).f1 for each in counts]
    selections = [select(f1) for f1 in f1_valid]
    counts, rows = _count(inputs, data.test, methods, thresholds, selections, threads)
    f1_test = [score_counts(each, residues_test, instances_test, data.residue_level).f1 for each in counts]
    del counts

    results = []
    for method, selection, valid, test, counted in zip(methods, selections, f1_valid, f1_test, rows, strict=True):
        some = selection.latents != NO_LATENT
        results.append(
            MethodResult(
                name=method.method,
                units=tuple(method.unit_name(int(unit)) if unit != NO_LATENT else "" for unit in selection.latents),
                latents=selection.latents,
                thresholds=np.where(some, np.asarray(thresholds)[selection.thresholds], np.nan),
                f1_valid=selection.f1,
                tested=score_rows(counted, data.test.labels, data.test.owners, data.residue_level, how),
                pairs=confirmed_pairs(valid, test, F1_BOUND),
            )
        )
    results.append(_residue_letters(data, how))
    best = best_concepts(f1_valid[0], f1_test[0], concepts_per_latent)
    return report(data, results, best, thresholds, how, inputs.sae.config, output)


def _count(
    inputs: Inputs,
    split: Split,
    methods: Sequence[Units],
    thresholds: Sequence[float],
    selections: Sequence[Selection] | None,
    threads: int,
) -> tuple[list[Counts], list[RowCounts]]:
    """One pass over a split: counts of all units and, where selections are given, of the selected per sequence."""
    num_concepts = split.labels.num_concepts
    counters = [ConceptCounter(num_concepts, method.num_units, thresholds) for method in methods]
    rows: list[list[RowCounts]] = [[] for _ in methods]
    sequences, accessions = split.proteins["sequence"].tolist(), split.proteins["accession"].tolist()
    config = inputs.sae.config

    def run(batch: tuple[int, int]) -> tuple[Labels, list[Sparse]]:
        first, last = batch
        tokens = inputs.plm.tokenize(sequences[first:last], accessions[first:last])
        x = inputs.plm.hidden(tokens, config.layer, config.hook)
        return split.labels.batch(first, last), [method.activations(x) for method in methods]

    with Progress("evaluate@concepts", split.labels.num_residues, "residues") as progress:
        for labels, found in ordered_map(run, pairwise(split.batches.tolist()), threads):
            for number, activations in enumerate(found):
                counters[number].add(activations, labels)
                if selections is not None:
                    marked = predicted(activations, selections[number], counters[number].thresholds)
                    rows[number].append(count_rows(marked, np.arange(num_concepts), labels))
            progress.update(labels.num_residues)
    joined = [RowCounts.concatenate(pieces) for pieces in rows] if selections is not None else []
    return [counter.result() for counter in counters], joined


def _residue_letters(data: ConceptData, how: Resampling) -> MethodResult:
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
