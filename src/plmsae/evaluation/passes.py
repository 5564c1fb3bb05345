"""One pass over the proteins of a split: hidden states are made once, and every method is scored on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plmsae.evaluation.average_precision import LevelCounter
from plmsae.evaluation.concept_data import Split
from plmsae.evaluation.counts import ConceptCounter, Counts, RowCounts, count_rows
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.residue_labels import Labels, Sparse
from plmsae.evaluation.scores import NO_LATENT, Selection
from plmsae.evaluation.units import Units
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress

PREDICTORS_AT_ONCE = 1024


@dataclass(frozen=True)
class Predictors:
    """Fixed predictors of one method, each for one concept.

    Attributes:
        units: [S] unit, or `NO_LATENT` for one that never predicts.
        thresholds: [S] index of its threshold.
        concepts: [S] the concept that it speaks for.
    """

    units: NDArray[np.int64]
    thresholds: NDArray[np.int64]
    concepts: NDArray[np.int64]

    @classmethod
    def of(cls, selection: Selection) -> Predictors:
        """The best unit of each concept."""
        return cls(selection.latents, selection.thresholds, np.arange(len(selection.latents)))

    def part(self, which: slice) -> Predictors:
        """Some of them."""
        return Predictors(self.units[which], self.thresholds[which], self.concepts[which])


@dataclass(frozen=True)
class Batch:
    """What a pass knows of some consecutive sequences.

    Attributes:
        first: Number of the first sequence in the split.
        labels: Labels of their R residues.
        x: Hidden states [R, d_model].
        codes: Per method, what `encode_sparse` returns.
        activations: Per method, normalised activations [R, n], CSR.
    """

    first: int
    labels: Labels
    x: Tensor
    codes: Sequence[tuple[Tensor, Tensor]]
    activations: Sequence[Sparse]


@dataclass(frozen=True)
class SplitRun:
    """What a pass found.

    Attributes:
        counts: Per method, counts of all units; empty if they were not asked for.
        rows: Per method, counts of the predictors on each sequence; empty where none were given.
        observed: What `observe` returned, batch by batch.
    """

    counts: list[Counts]
    rows: list[RowCounts]
    observed: list[Any]


def run_split(
    inputs: Inputs,
    split: Split,
    methods: Sequence[Units],
    thresholds: Sequence[float],
    *,
    title: str,
    threads: int,
    predictors: Sequence[Predictors] | None = None,
    level_counters: Sequence[LevelCounter] = (),
    observe: Callable[[Batch], Any] | None = None,
    count: bool = True,
) -> SplitRun:
    """Run the model and all methods over a split.

    Args:
        inputs: Model, layer and hook.
        split: Proteins and labels.
        methods: Units to count.
        thresholds: Ascending thresholds on normalised activations.
        title: Name on the progress line.
        threads: Batches that are run at once; the numbers do not depend on it.
        predictors: Per method, predictors to count sequence by sequence.
        level_counters: Per method, gets the activations of its predictors; none if they are not asked for.
        observe: Called for every batch on one of the threads; must not change shared state.
        count: Whether all units are counted against all concepts.
    """
    num_concepts = split.labels.num_concepts
    counters = [ConceptCounter(num_concepts, each.num_units, thresholds) for each in methods if count]
    levels = np.asarray(thresholds, dtype=np.float32)
    rows: list[list[RowCounts]] = [[] for _ in methods]
    observed = []
    sequences, accessions = split.proteins["sequence"].tolist(), split.proteins["accession"].tolist()
    config = inputs.sae.config

    def run(place: tuple[int, int]) -> tuple[Batch, list[RowCounts], list[Any], Any]:
        first, last = place
        tokens = inputs.plm.tokenize(sequences[first:last], accessions[first:last])
        x = inputs.plm.hidden(tokens, config.layer, config.hook)
        codes = [method.encode(x) for method in methods]
        activations = [method.normalised(*code) for method, code in zip(methods, codes)]
        batch = Batch(first, split.labels.batch(first, last), x, codes, activations)
        found = [
            count_predictors(each, given, levels, batch.labels) for each, given in zip(activations, predictors or ())
        ]
        levels_found = [each.read(part, batch.labels, first) for each, part in zip(level_counters, activations)]
        return batch, found, levels_found, observe(batch) if observe else None

    with Progress(title, split.labels.num_residues, "residues") as progress:
        for batch, found, levels_found, seen in ordered_map(run, pairwise(split.batches.tolist()), threads):
            for counter, activations in zip(counters, batch.activations):
                counter.add(activations, batch.labels)
            for pieces, piece in zip(rows, found):
                pieces.append(piece)
            for level_counter, levels_seen in zip(level_counters, levels_found):
                level_counter.add(levels_seen)
            observed.append(seen)
            progress.update(batch.labels.num_residues)
    joined = [RowCounts.concatenate(pieces) for pieces in rows] if predictors is not None else []
    return SplitRun([counter.result() for counter in counters], joined, observed)


def count_predictors(
    activations: Sparse, predictors: Predictors, levels: NDArray[np.float32], labels: Labels
) -> RowCounts:
    """Counts of predictors on each sequence of a batch; a few at a time, as their marks are dense.

    Args:
        activations: [R, n] CSR, normalised.
        predictors: Predictors.
        levels: The thresholds that they point at.
        labels: Labels of the R residues.
    """
    columns = activations.tocsc()
    pieces = []
    for start in range(0, max(len(predictors.units), 1), PREDICTORS_AT_ONCE):
        part = slice(start, start + PREDICTORS_AT_ONCE)
        units, of = predictors.units[part], predictors.concepts[part]
        some = units != NO_LATENT
        marked = (columns[:, np.where(some, units, 0)].toarray() > levels[predictors.thresholds[part]]) & some
        pieces.append(count_rows(marked, of, labels))
    return RowCounts(
        true_positives=np.concatenate([piece.true_positives for piece in pieces], axis=1),
        hits=np.concatenate([piece.hits for piece in pieces], axis=1),
        active=np.concatenate([piece.active for piece in pieces], axis=1),
    )
