"""Concepts: which Swiss-Prot annotations single latents predict, beside the neurons and the residue's letter alone.

InterPLM's protocol (Simon & Zou 2024) on splits separated by homology. On the validation split the unit and the
threshold with the highest F1 are selected for each concept; both are carried to the test split unchanged, and a concept
that is missed counts as 0. All methods are scored on the same residues and resampled with the same proteins. Beside F1
stands the average precision of the same unit on test, which needs no threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation import concept_data, interplm_compat
from plmsae.evaluation.average_precision import LevelCounter, groups_of, letter_average_precision
from plmsae.evaluation.concept_compare import Resampling, score_rows
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_report import MethodResult, nothing_to_score, report
from plmsae.evaluation.counts import RowCounts, count_rows
from plmsae.evaluation.derived_concepts import parse
from plmsae.evaluation.derived_report import report_derived
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
    derived: Sequence[Mapping[str, Any]] = (),
    interplm_table: Path | None = None,
    interplm_min_instances: int = 100,
    interplm_min_residues: int = 1500,
    interplm_min_domains: int = 25,
    interplm_normalised: bool = False,
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
        derived: Derived concepts (`derived_concepts.Derived`), scored in the same passes and reported apart.
        interplm_table: UniProt's table; with it the numbers of InterPLM's own code are reported as well
            (`interplm_compat`, whose options these are).
        interplm_min_instances: See `interplm_compat.Options`.
        interplm_min_residues: See there.
        interplm_min_domains: See there.
        interplm_normalised: See there.
    """
    data = concept_data.load(
        inputs,
        max_proteins=max_proteins,
        min_instances=min_instances,
        min_proteins=min_proteins,
        max_tokens=max_tokens,
        seed=seed,
        derived=parse(derived),
    )
    named = data.part(derived=False)
    named.left_out.to_csv(output / "left_out.csv", index=False, lineterminator="\n")
    as_theirs = None
    if interplm_table is not None:
        options = interplm_compat.Options(
            interplm_table, interplm_min_instances, interplm_min_residues, interplm_min_domains, interplm_normalised
        )
        as_theirs = interplm_compat.evaluate(
            inputs, (data.valid, data.test), output, options, thresholds=thresholds, threads=threads
        )
    if not named.concepts:
        return _joined(nothing_to_score(named, output, min_instances, min_proteins), as_theirs)
    how = Resampling(num_resamples, confidence, seed)
    methods = [Units("sae", inputs.sae), Units("neurons", neurons(inputs))]
    residues_valid, instances_valid = data.valid.labels.num_residues_of(), data.valid.labels.num_instances_of()
    residues_test, instances_test = data.test.labels.num_residues_of(), data.test.labels.num_instances_of()

    valid = run_split(inputs, data.valid, methods, thresholds, title=_TITLE, threads=threads)
    f1_valid = [f1_of(each, residues_valid, instances_valid, data.residue_level) for each in valid.counts]
    del valid  # counts are as large as the F1 they became
    selections = [select(f1) for f1 in f1_valid]
    predictors = [Predictors.of(selection) for selection in selections]
    groups = groups_of(data.test.owners, seed)
    counters = [LevelCounter(selection.latents, groups) for selection in selections]
    test = run_split(
        inputs,
        data.test,
        methods,
        thresholds,
        title=_TITLE,
        threads=threads,
        predictors=predictors,
        level_counters=counters,
    )
    f1_test = [f1_of(each, residues_test, instances_test, data.residue_level) for each in test.counts]
    test.counts.clear()

    results = []
    for place, (method, selection) in enumerate(zip(methods, selections, strict=True)):
        some = selection.latents != NO_LATENT
        results.append(
            MethodResult(
                name=method.method,
                units=tuple(method.unit_name(int(unit)) if unit != NO_LATENT else "" for unit in selection.latents),
                latents=selection.latents,
                thresholds=np.where(some, np.asarray(thresholds)[selection.thresholds], np.nan),
                f1_valid=selection.f1,
                tested=score_rows(test.rows[place], data.test.labels, data.test.owners, data.residue_level, how),
                pairs=None,
                average_precision=counters[place].result(data.test.labels, num_resamples, seed),
            )
        )
    results.append(_with_letter_ranking(residue_letters(data, how), data, groups, how))

    def part(which: slice) -> list[MethodResult]:
        units = [
            replace(
                result.concepts(which), pairs=confirmed_pairs(f1_valid[place][which], f1_test[place][which], F1_BOUND)
            )
            for place, result in enumerate(results[:-1])
        ]
        return [*units, results[-1].concepts(which)]

    first = slice(0, data.num_named)
    best = best_concepts(f1_valid[0][first], f1_test[0][first], concepts_per_latent)
    outcome = report(named, part(first), best, thresholds, how, inputs.sae.config, output)
    if not derived:
        return _joined(outcome, as_theirs)
    rest = slice(data.num_named, None)
    return _joined(outcome, report_derived(data.part(derived=True), part(rest), how, output), as_theirs)


def _joined(first: Outcome, *others: Outcome | None) -> Outcome:
    """Metrics and summaries of several outcomes as one."""
    for other in others:
        if other is not None:
            first = Outcome({**first.metrics, **other.metrics}, f"{first.summary} {other.summary}")
    return first


def _with_letter_ranking(
    result: MethodResult, data: ConceptData, groups: NDArray[np.int64], how: Resampling
) -> MethodResult:
    """The letters with their average precision: not that of the chosen set, but of all letters ranked."""
    found = letter_average_precision(
        data.valid.labels,
        letter_codes(data.valid.proteins["sequence"]),
        data.test.labels,
        letter_codes(data.test.proteins["sequence"]),
        groups,
        how.num_resamples,
        how.seed,
    )
    return replace(result, average_precision=found)


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
