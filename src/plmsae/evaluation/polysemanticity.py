"""Concepts per unit: how many meanings one unit carries. Two measures; both are 1 for an ideal monosemantic unit.

Confirmed concepts. A unit has a concept if its F1 is above a bound and above the residue-letter predictor's F1, with
the threshold that is best on validation, on validation and again on test. The two splits share no homologous protein,
so what selection among thousands of units and thresholds finds by luck has to happen twice; the letters also hold the
predictor that marks every residue, so a frequent concept is not found by firing often. A type-level concept
(`Domain: any`) does not count beside a specific one of the same type (`Domain: SH3`), which is the same meaning said
more precisely. The number is averaged over the units that have at least one, so dictionaries of different size can be
compared; concepts that truly share their residues (a transmembrane stretch that is a helix) count as two.

Effective concepts. q_c is the unit's mean activation over the residues of class c (its activation mass there by the
number of these residues, so that frequent classes weigh no more), p = q / sum q, and the number is exp(-sum p log p):
1 for a unit that fires in one class only, C for one that fires in all alike. Classes are made disjoint within a type:
each specific concept, and what is left of its type. Classes of different types may overlap. Units with too
little activity to say (fewer active labelled residues or proteins than a concept needs) are left out: a unit that fires
three times cannot spread. The number is averaged over the units left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.bootstrap import Floats, Interval, percentile_bounds, resampled_sums
from plmsae.evaluation.concept_compare import Resampling, Tested, score_rows
from plmsae.evaluation.counts import RowCounts
from plmsae.evaluation.labels import Concept
from plmsae.evaluation.passes import Predictors
from plmsae.evaluation.residue_labels import Labels, Sparse

# Activations become whole numbers: sums of these are exact in any order, and so equal on any number of cores.
STEPS = 1 << 16
PAIRS_AT_ONCE = 512
CELLS_AT_ONCE = 8192
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class UnitAverage:
    """A number averaged over units.

    Attributes:
        per_unit: [n] the number of each unit; NaN for units that are left out.
        interval: Its mean over the other units, with the bootstrap's bounds; None if there are none.
        samples: [num_resamples] of the mean; NaN where a resample leaves no unit.
    """

    per_unit: Floats
    interval: Interval | None
    samples: Floats

    @property
    def num_units(self) -> int:
        """Units in the mean."""
        return int(np.isfinite(self.per_unit).sum())


def average(per_unit: Floats, samples: Floats, confidence: float, *, lowest: float = 1.0) -> UnitAverage:
    """The mean of the finite numbers with its interval, which starts no lower than `lowest`.

    A resample holds fewer different proteins than there are, so that a unit meets fewer classes in it: resampled
    numbers are too low throughout. The interval takes their spread, about the estimate: it is moved by the difference
    of the estimate and their mean.
    """
    if not np.isfinite(per_unit).any() or np.isnan(samples).all():
        return UnitAverage(per_unit, None, samples)
    value = float(np.nanmean(per_unit))
    low, high = percentile_bounds(samples, confidence)
    shift = value - float(np.nanmean(samples))
    return UnitAverage(per_unit, Interval(value, max(float(low) + shift, lowest), float(high) + shift), samples)


def candidates(f1_valid: Floats, letters_valid: Floats, bound: float) -> Predictors:
    """Pairs of unit and concept above the bound and above the letters on validation.

    Args:
        f1_valid: [C, T, n] of every concept, threshold and unit.
        letters_valid: [C] F1 of the residue letters.
        bound: The lowest bound of interest.
    """
    thresholds = np.argmax(f1_valid, axis=1)
    best = np.take_along_axis(f1_valid, thresholds[:, None], axis=1)[:, 0]
    concepts, units = np.nonzero((best > bound) & (best > letters_valid[:, None]))
    return Predictors(units.astype(np.int64), thresholds[concepts, units], concepts.astype(np.int64))


def confirmed_concepts(
    pairs: Predictors,
    f1_valid: Floats,
    rows: RowCounts,
    labels: Labels,
    owners: Ints,
    residue_level: NDArray[np.bool_],
    letters: Tested,
    concepts: Sequence[Concept],
    num_units: int,
    bounds: Sequence[float],
    how: Resampling,
) -> list[UnitAverage]:
    """Confirmed concepts per unit, for every bound.

    Args:
        pairs: What `candidates` found at the lowest bound.
        f1_valid: [C, T, n].
        rows: Test counts of the pairs on each sequence.
        labels: Test labels.
        owners: [num_rows] protein of each sequence.
        residue_level: [C] true where recall counts residues.
        letters: Test scores of the residue letters, resampled alike.
        concepts: The C concepts.
        num_units: n.
        bounds: Bounds on F1.
        how: Resamples.
    """
    selected = f1_valid[pairs.concepts, pairs.thresholds, pairs.units]
    again, samples = [np.empty(0)], [np.empty((how.num_resamples, 0), dtype=np.float32)]
    for start in range(0, len(pairs.units), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        tested = score_rows(rows.columns(part), labels, owners, residue_level, how, pairs.concepts[part])
        of = pairs.concepts[part]
        # A pair that does not beat the letters has no F1 worth a name.
        again.append(np.where(tested.scores.f1 > letters.scores.f1[of], tested.scores.f1, 0.0))
        samples.append(np.where(tested.samples > letters.samples[:, of], tested.samples, 0.0).astype(np.float32))
    f1, resampled = np.concatenate(again), np.concatenate(samples, axis=1)
    siblings = _siblings(pairs, concepts)
    used, owner = np.unique(pairs.units, return_inverse=True)
    members = sparse.csr_matrix(
        (np.ones(len(owner), dtype=np.int32), (np.arange(len(owner)), owner)), shape=(len(owner), len(used))
    )
    found = []
    for bound in bounds:
        have = _counted((selected > bound) & (f1 > bound), siblings, members)
        per_unit = np.full(num_units, np.nan)
        per_unit[used[have[0] > 0]] = have[0][have[0] > 0]
        counts = _counted((selected > bound) & (resampled > np.float32(bound)), siblings, members)
        with_any = (counts > 0).sum(axis=1)
        means = np.where(with_any > 0, counts.sum(axis=1) / np.maximum(with_any, 1), np.nan)
        found.append(average(per_unit, means, how.confidence))
    return found


def _siblings(pairs: Predictors, concepts: Sequence[Concept]) -> Sparse:
    """[S, S] 1 where the column's pair is a specific concept of the row's type, and of the row's unit."""
    types = np.array([concept.type for concept in concepts], dtype=object)[pairs.concepts]
    specific = np.array([bool(concept.subtype) for concept in concepts], dtype=bool)[pairs.concepts]
    table = pd.DataFrame({"unit": pairs.units, "type": types, "pair": np.arange(len(types))})
    both = table[~specific].merge(table[specific], on=["unit", "type"], suffixes=("", "_specific"))
    return sparse.csr_matrix(
        (np.ones(len(both), dtype=np.int32), (both["pair"], both["pair_specific"])), shape=2 * (len(types),)
    )


def _counted(has: NDArray[np.bool_], siblings: Sparse, members: Sparse) -> Ints:
    """Pairs that hold [..., S] -> concepts of each used unit [samples, units]."""
    has = np.atleast_2d(has)
    covered = (siblings @ has.T.astype(np.int32)).T > 0
    return np.asarray((members.T @ (has & ~covered).T.astype(np.int32)).T, dtype=np.int64)


def disjoint_classes(residues: Sparse, concepts: Sequence[Concept], fewest: int) -> tuple[Sparse, list[str]]:
    """Classes of residues, disjoint within a type.

    Args:
        residues: [R, C] CSR of 0/1, residue belongs to concept.
        concepts: The C concepts.
        fewest: Classes with fewer residues are left out.

    Returns:
        [R, L] CSR of 0/1 (int64), and the L names; what is left of a type with specific concepts is `TYPE: other`.
    """
    columns, names = [], []
    for number, concept in enumerate(concepts):
        column = residues[:, [number]].toarray()[:, 0] > 0
        specific = [place for place, other in enumerate(concepts) if other.subtype and other.type == concept.type]
        name = concept.name
        if not concept.subtype and specific:
            column &= residues[:, specific].getnnz(axis=1) == 0
            name = f"{concept.type}: other"
        if column.sum() >= fewest:
            columns.append(column)
            names.append(name)
    table = np.stack(columns, axis=1) if columns else np.zeros((residues.shape[0], 0), dtype=bool)
    return sparse.csr_matrix(table.astype(np.int64)), names


def class_masses(activations: Sparse, classes: Sparse, row_starts: Ints) -> tuple[Sparse, Sparse]:
    """What a batch of sequences adds to the masses.

    Args:
        activations: [R, n] CSR, normalised.
        classes: [R, L] CSR of 0/1.
        row_starts: [num_rows + 1] first residue of each sequence.

    Returns:
        Activation mass in steps [num_rows L, n] (row of sequence s and class l is s L + l), and labelled residues on
        which a unit is active [num_rows, n]; CSR int64.
    """
    num_rows, num_classes = len(row_starts) - 1, classes.shape[1]
    steps = activations.copy()
    steps.data = np.rint(steps.data.astype(np.float64) * STEPS).astype(np.int64)
    steps.eliminate_zeros()
    owner = np.repeat(np.arange(num_rows), np.diff(row_starts))
    labelled = classes.tocoo()
    gather = sparse.csr_matrix(
        (labelled.data, (owner[labelled.row] * num_classes + labelled.col, labelled.row)),
        shape=(num_rows * num_classes, classes.shape[0]),
    )
    some = np.flatnonzero(classes.getnnz(axis=1) > 0)
    by_row = sparse.csr_matrix(
        (np.ones(len(some), dtype=np.int64), (owner[some], some)), shape=(num_rows, classes.shape[0])
    )
    active = steps.copy()
    active.data = np.ones_like(active.data)
    return (gather @ steps).tocsr(), (by_row @ active).tocsr()


def effective_concepts(
    masses: Sparse,
    active: Sparse,
    residues: Ints,
    owners: Ints,
    how: Resampling,
    *,
    fewest_residues: int,
    fewest_proteins: int,
) -> UnitAverage:
    """Effective concepts per unit.

    Args:
        masses: [num_rows L, n] of all sequences (`class_masses`).
        active: [num_rows, n] labelled residues on which each unit is active.
        residues: [num_rows, L] residues of each class.
        owners: [num_rows] protein of each sequence.
        how: Resamples.
        fewest_residues: Active labelled residues that a unit needs.
        fewest_proteins: Proteins with such residues that it needs.
    """
    num_rows, num_classes = residues.shape
    num_proteins, num_units = int(owners.max()) + 1, masses.shape[1]
    per_protein = sparse.csr_matrix(
        (np.ones(num_rows, dtype=np.int64), (owners, np.arange(num_rows))), shape=(num_proteins, num_rows)
    )
    seen = per_protein @ active
    enough = (np.asarray(seen.sum(axis=0))[0] >= fewest_residues) & (seen.getnnz(axis=0) >= fewest_proteins)
    units = np.flatnonzero(enough)
    spread = sparse.kron(per_protein, sparse.identity(num_classes, dtype=np.int64), format="csr")
    by_protein = (spread @ masses).tocsc()
    sizes = per_protein @ residues
    drawn_sizes = resampled_sums(sizes, how.num_resamples, how.seed)
    per_unit, total, number = np.full(num_units, np.nan), 0.0, 0.0
    at_once = max(1, CELLS_AT_ONCE // max(num_classes, 1))
    for start in range(0, len(units), at_once):
        some = units[start : start + at_once]
        mass = by_protein[:, some].toarray().reshape(num_proteins, num_classes, len(some))
        per_unit[some] = _perplexity(mass.sum(axis=0, dtype=np.float64)[None], sizes.sum(axis=0)[None])[0]
        drawn = _perplexity(resampled_sums(mass, how.num_resamples, how.seed), drawn_sizes)
        total = total + np.nansum(drawn, axis=1)
        number = number + np.isfinite(drawn).sum(axis=1)
    filled = np.broadcast_to(total, (how.num_resamples,)), np.broadcast_to(number, (how.num_resamples,))
    samples = np.where(filled[1] > 0, filled[0] / np.maximum(filled[1], 1), np.nan)
    return average(per_unit, samples, how.confidence)


def _perplexity(mass: Floats, sizes: NDArray[np.float64] | Ints) -> Floats:
    """exp of the entropy over classes: masses [B, L, n] and sizes [B, L] -> [B, n]; NaN without any mass."""
    means = mass / np.maximum(sizes, 1)[:, :, None]
    total = means.sum(axis=1)
    # sum p log p = sum q log q / total - log total; 0 log 0 is 0.
    logs = (means * np.log(means, out=np.zeros_like(means), where=means > 0)).sum(axis=1)
    safe = np.where(total > 0, total, 1.0)
    return np.where(total > 0, np.exp(np.log(safe) - logs / safe), np.nan)
