"""Test scores of the selected predictors with bootstrap intervals, and paired differences between methods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats, Interval, group_sums, percentile_bounds, resampled_sums
from plmsae.evaluation.counts import RowCounts
from plmsae.evaluation.residue_labels import Labels
from plmsae.evaluation.scores import Scores, score

PREDICTORS_AT_ONCE = 64  # their counts per protein, and resampled, are in memory at once


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: number of resamples, coverage, and the seed that pairs them."""

    num_resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Tested:
    """Test scores of S predictors, one per concept unless said otherwise.

    Attributes:
        scores: [S] on the test proteins.
        samples: [num_resamples, S] F1 in each resample; NaN where a resample has no instance of the concept.
    """

    scores: Scores
    samples: Floats


@dataclass(frozen=True)
class Difference:
    """F1 of one method minus another's, on the same resamples.

    Attributes:
        low: [C] lower bound per concept.
        high: [C] upper bound per concept.
        mean: Averaged over concepts.
    """

    low: Floats
    high: Floats
    mean: Interval


def score_rows(
    rows: RowCounts,
    labels: Labels,
    owners: NDArray[np.int64],
    residue_level: NDArray[np.bool_],
    how: Resampling,
    concepts: NDArray[np.int64] | None = None,
) -> Tested:
    """Score predictors from counts per sequence.

    Args:
        rows: Counts [num_rows, S].
        labels: Labels of the rows.
        owners: [num_rows] protein of each row, the unit of the bootstrap.
        residue_level: [C] true where recall counts residues.
        how: Resamples.
        concepts: [S] the concept of each predictor; if not given, one predictor per concept, in order.
    """
    of = np.arange(labels.num_concepts) if concepts is None else concepts
    num_residues, num_instances = labels.residues_per_row(), labels.instances_per_row()
    pieces = []
    for start in range(0, max(len(of), 1), PREDICTORS_AT_ONCE):  # equal seeds draw equal proteins each time
        which = slice(start, start + PREDICTORS_AT_ONCE)
        part, about = rows.columns(which), of[which]
        counted = (part.true_positives, part.hits, part.active, num_residues[:, about], num_instances[:, about])
        by_protein = np.stack([group_sums(each.astype(np.int64), owners) for each in counted], axis=1)  # [P, 5, S]
        total = by_protein.sum(axis=0)
        drawn = resampled_sums(by_protein, how.num_resamples, how.seed)
        level = residue_level[about]
        samples = score(drawn[:, 0], drawn[:, 1], drawn[:, 2], drawn[:, 3], drawn[:, 4], level).f1
        pieces.append((score(total[0], total[1], total[2], total[3], total[4], level), samples))
    return Tested(
        scores=Scores(
            *(np.concatenate([getattr(scores, name) for scores, _ in pieces]) for name in ("precision", "recall", "f1"))
        ),
        samples=np.concatenate([samples for _, samples in pieces], axis=1),
    )


def mean_interval(tested: Tested, confidence: float) -> Interval:
    """Mean F1 over concepts."""
    return mean_over_concepts(tested.scores.f1, tested.samples, confidence)


def bounds(tested: Tested, confidence: float) -> tuple[Floats, Floats]:
    """[C] interval of each concept's F1."""
    return percentile_bounds(tested.samples, confidence)


def difference(ours: Tested, theirs: Tested, confidence: float) -> Difference:
    """Paired difference of two methods that were resampled alike."""
    samples = ours.samples - theirs.samples
    low, high = percentile_bounds(samples, confidence)
    return Difference(
        low=low, high=high, mean=mean_over_concepts(ours.scores.f1 - theirs.scores.f1, samples, confidence)
    )


def mean_over_concepts(values: Floats, samples: Floats, confidence: float) -> Interval:
    """Mean of [S] scores with the interval of its resamples [num_resamples, S]."""
    # A concept without an instance in a resample has no score there and leaves that resample's mean.
    num_defined = (~np.isnan(samples)).sum(axis=1)
    means = np.where(num_defined > 0, np.nansum(samples, axis=1) / np.maximum(num_defined, 1), np.nan)
    low, high = percentile_bounds(means, confidence)
    return Interval(float(values.mean()), float(low), float(high))
