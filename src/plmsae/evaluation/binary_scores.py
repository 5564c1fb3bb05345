"""How well scores predict a binary label: AUROC, average precision, and what a threshold at 0 gives, with intervals.

AUROC is the share of (positive, negative) pairs in the right order, ties half (Mann & Whitney 1947). Average precision
is sum (R_k - R_(k-1)) P_k over the distinct scores from above, without interpolation, as in scikit-learn. Values are
exact. For the intervals scores are cut into at most `BINS` bins of about as many examples, whose counts per protein
are resampled; the spread of what the bins give, moved to lie about the exact value, is the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats, Interval, percentile_bounds, resampled_sums

Bools = NDArray[np.bool_]
BINS = 256
THRESHOLD_SCORES = ("precision", "recall", "f1", "balanced_accuracy", "mcc")
SCORES = ("auroc", "average_precision", *THRESHOLD_SCORES)
_LOWEST = {"mcc": -1.0}


def threshold_scores(tp: Any, fp: Any, fn: Any, tn: Any) -> dict[str, Floats]:
    """Scores of marked examples from the four counts, which broadcast.

    Returns:
        Arrays by the names of `THRESHOLD_SCORES`: precision, recall and F1 (0 without a true positive), balanced
        accuracy (the mean of both classes' recall) and Matthews' correlation (0 where a margin is empty). Recall, F1
        and balanced accuracy are NaN where a class that they divide by has no example.
    """
    tp, fp, fn, tn = (np.asarray(value, dtype=np.float64) for value in (tp, fp, fn, tn))
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0.0)
        recall = tp / (tp + fn)
        f1 = np.where(tp + fn > 0, 2 * tp / (2 * tp + fp + fn), np.nan)
        balanced = (recall + tn / (tn + fp)) / 2
        margins = np.sqrt(tp + fp) * np.sqrt(tp + fn) * np.sqrt(tn + fp) * np.sqrt(tn + fn)
        mcc = np.where(margins > 0, (tp * tn - fp * fn) / margins, 0.0)
    return {"precision": precision, "recall": recall, "f1": f1, "balanced_accuracy": balanced, "mcc": mcc}


def ranking_scores(positives: Floats, negatives: Floats) -> dict[str, Floats]:
    """AUROC and average precision from counts by score.

    Args:
        positives: [..., B] positive examples at each of B ascending scores.
        negatives: [..., B] negative examples.

    Returns:
        `auroc` and `average_precision`, [...]; NaN where a class that they divide by has no example.
    """
    num_positive, num_negative = positives.sum(axis=-1), negatives.sum(axis=-1)
    below = np.cumsum(negatives, axis=-1) - 0.5 * negatives
    above = np.cumsum(positives[..., ::-1], axis=-1)
    marked = above + np.cumsum(negatives[..., ::-1], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (positives * below).sum(axis=-1) / (num_positive * num_negative)
        precision = np.where(marked > 0, above / marked, 0.0)
        average = (positives[..., ::-1] * precision).sum(axis=-1) / num_positive
    return {"auroc": auroc, "average_precision": average}


def exact_scores(scores: Floats, targets: Bools) -> dict[str, float]:
    """All of `SCORES` for examples [E]; an example is marked where its score is above 0."""
    levels, place = np.unique(scores, return_inverse=True)
    ranking = ranking_scores(
        np.bincount(place[targets], minlength=len(levels)).astype(np.float64),
        np.bincount(place[~targets], minlength=len(levels)).astype(np.float64),
    )
    marked = scores > 0
    counts = [int((marked == m)[targets == t].sum()) for m, t in ((1, 1), (1, 0), (0, 1), (0, 0))]
    return {name: float(value) for name, value in (ranking | threshold_scores(*counts)).items()}


@dataclass(frozen=True)
class Sampled:
    """Scores with what they are in each resample.

    Attributes:
        values: Exact scores by the names of `SCORES`.
        samples: [num_resamples] by the same names; NaN where a resample does not define the score.
    """

    values: dict[str, float]
    samples: dict[str, Floats]

    def interval(self, name: str, confidence: float) -> Interval:
        """One score with its percentile interval."""
        low, high = percentile_bounds(self.samples[name], confidence)
        lowest = _LOWEST.get(name, 0.0)
        return Interval(self.values[name], float(np.clip(low, lowest, 1.0)), float(np.clip(high, lowest, 1.0)))

    def minus(self, other: Sampled, name: str, confidence: float) -> Interval:
        """The difference to another predictor's score on the same examples, resampled with the same proteins."""
        low, high = percentile_bounds(self.samples[name] - other.samples[name], confidence)
        return Interval(self.values[name] - other.values[name], float(low), float(high))


def sampled_scores(
    scores: Floats, targets: Bools, owners: NDArray[np.int64], *, num_resamples: int, seed: int
) -> Sampled:
    """Exact scores, and those of resampled proteins.

    Args:
        scores: [E] finite.
        targets: [E] labels.
        owners: [E] number of the protein that each example is of.
        num_resamples: Number of resamples.
        seed: Seed; equal seeds and proteins draw the same resamples.
    """
    proteins = np.unique(owners, return_inverse=True)[1]
    num_proteins = int(proteins.max()) + 1
    bins, num_bins = _bins(scores)
    marked = scores > 0
    # Columns: negatives by bin, positives by bin, then unmarked and marked negatives, unmarked and marked positives.
    width = 2 * num_bins + 4
    table = np.bincount(proteins * width + targets * num_bins + bins, minlength=num_proteins * width)
    table += np.bincount(proteins * width + 2 * num_bins + 2 * targets + marked, minlength=num_proteins * width)
    sums = table.reshape(num_proteins, width)

    def statistics(totals: Floats) -> dict[str, Floats]:
        negatives, positives = totals[:, :num_bins], totals[:, num_bins : 2 * num_bins]
        tn, fp, fn, tp = totals[:, 2 * num_bins :].T
        return ranking_scores(positives, negatives) | threshold_scores(tp, fp, fn, tn)

    exact = exact_scores(scores, targets)
    binned = statistics(sums.sum(axis=0, keepdims=True).astype(np.float64))
    samples = statistics(resampled_sums(sums, num_resamples, seed))
    # What the bins blur, a little and alike in every resample, is taken off.
    return Sampled(exact, {name: samples[name] + (exact[name] - float(binned[name][0])) for name in SCORES})


def _bins(scores: Floats) -> tuple[NDArray[np.int64], int]:
    """Bin of each score; each distinct score is a bin where there are at most `BINS`."""
    levels, place = np.unique(scores, return_inverse=True)
    if len(levels) <= BINS:
        return place.astype(np.int64), len(levels)
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right").astype(np.int64), len(edges) + 1
