"""Accuracy of all-unit probes as one classifier, where classes exclude each other (one location per protein).

The class with the highest log odds is the answer, as of scikit-learn's one-versus-rest; InterProt reports this accuracy
for subcellular location. Beside it stands that of always giving the most frequent class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats, Interval, group_sums, intervals
from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.one_unit_probes import Bools


def exclusive(targets: Bools, known: Bools) -> Bools:
    """[E] examples of which exactly one class is true and all are known; all False where an example has several.

    Args:
        targets: [E, C].
        known: [E, C].
    """
    counts = targets.sum(axis=1)
    if targets.shape[1] < 2 or (counts > 1).any():
        return np.zeros(len(targets), dtype=bool)
    return np.asarray(known.all(axis=1) & (counts == 1))


def accuracies(scores: Floats, targets: Bools, owners: NDArray[np.int64], how: Resampling) -> dict[str, Interval]:
    """Accuracy of the highest score, and of the most frequent class, with intervals over proteins.

    Args:
        scores: [E, C] log odds of each class.
        targets: [E, C] one true class per example.
        owners: [E] number of the protein of each example.
        how: Resamples.

    Returns:
        `accuracy` and `most_frequent`.
    """
    right = np.argmax(scores, axis=1) == np.argmax(targets, axis=1)
    frequent = targets[:, int(np.argmax(targets.sum(axis=0)))]
    proteins = np.unique(owners, return_inverse=True)[1]
    sums = group_sums(np.stack([right, frequent, np.ones(len(right))], axis=1).astype(np.int64), proteins)
    return intervals(
        sums,
        lambda totals: {"accuracy": totals[:, 0] / totals[:, 2], "most_frequent": totals[:, 1] / totals[:, 2]},
        num_resamples=how.num_resamples,
        confidence=how.confidence,
        seed=how.seed,
    )
