"""F1 of latents as predictors of concepts, and their selection on validation.

Precision counts residues. Recall counts annotation instances with at least one active residue, or residues for
concepts annotated per residue (Simon & Zou 2024, Methods). F1 is 0 where nothing labelled is found: a missing
prediction is a failure and never drops out of a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.counts import Counts

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
NO_LATENT = -1


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1, each of the shape of the counts that they came from."""

    precision: Floats
    recall: Floats
    f1: Floats


def score(
    true_positives: NDArray[Any],
    hits: NDArray[Any],
    active: NDArray[Any],
    num_residues: NDArray[Any],
    num_instances: NDArray[Any],
    residue_level: NDArray[Any],
) -> Scores:
    """Scores from counts; arguments broadcast against each other.

    Args:
        true_positives: Labelled residues that are predicted.
        hits: Annotation instances with at least one predicted residue.
        active: Predicted residues.
        num_residues: Labelled residues.
        num_instances: Annotation instances.
        residue_level: True where recall counts residues.

    Returns:
        Scores in [0, 1]; precision is 0 without a prediction. Recall and F1 are NaN where the concept has no
        instance, which only happens inside a bootstrap resample.
    """
    found = np.where(residue_level, true_positives, hits)
    wanted = np.where(residue_level, num_residues, num_instances)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(active > 0, true_positives / active, 0.0)
        recall = np.where(wanted > 0, found / wanted, np.nan)
        f1 = np.where(found > 0, 2 * precision * recall / (precision + recall), np.where(wanted > 0, 0.0, np.nan))
    return Scores(precision=precision, recall=recall, f1=f1)


def f1_of(counts: Counts, num_residues: NDArray[Any], num_instances: NDArray[Any], residue_level: Bools) -> Floats:
    """F1 [C, T, n] of every latent and threshold for every concept; see `score`.

    F1 = 2 TP found / (TP wanted + active found), with found and wanted in residues or in instances. One concept at a
    time: its counts and F1 stay in the cache.
    """
    f1 = np.zeros(counts.true_positives.shape)
    active = counts.active.astype(np.float64)
    for concept, of in enumerate(f1):
        by_residue = bool(residue_level[concept])
        wanted = (num_residues if by_residue else num_instances)[concept]
        if wanted == 0:
            of.fill(np.nan)
            continue
        true_positives = counts.true_positives[concept]
        found = true_positives if by_residue else counts.hits[concept]
        both = true_positives * found.astype(np.float64)
        np.divide(2 * both, true_positives * float(wanted) + active * found, out=of, where=found > 0)
    return f1


@dataclass(frozen=True)
class Selection:
    """The best latent and threshold of each concept.

    Attributes:
        latents: [C] latent, or `NO_LATENT` if none finds the concept.
        thresholds: [C] index of the threshold.
        f1: [C] its F1 on the data it was selected on.
    """

    latents: NDArray[np.int64]
    thresholds: NDArray[np.int64]
    f1: Floats


def select(f1: Floats) -> Selection:
    """Select per concept by F1 [C, T, n]; ties go to the lowest threshold, then to the lowest latent."""
    num_concepts, _, num_latents = f1.shape
    flat = f1.reshape(num_concepts, -1)
    best = np.argmax(flat, axis=1)
    highest = flat[np.arange(num_concepts), best]
    latents = np.where(highest > 0, best % num_latents, NO_LATENT)
    return Selection(latents=latents, thresholds=best // num_latents, f1=highest)


@dataclass(frozen=True)
class Pairs:
    """Concept-latent pairs whose F1 is above a bound on validation, and again on test at the same threshold.

    Attributes:
        num_pairs: Pairs above the bound on both splits.
        num_latents: Different latents among them.
        num_concepts: Different concepts among them.
    """

    num_pairs: int
    num_latents: int
    num_concepts: int


def confirmed_pairs(f1_valid: Floats, f1_test: Floats, bound: float) -> Pairs:
    """Pairs above `bound` on validation at their best threshold there, re-scored on test (F1 [C, T, n])."""
    best = np.argmax(f1_valid, axis=1)[:, None]
    valid = np.take_along_axis(f1_valid, best, axis=1)[:, 0]
    test = np.take_along_axis(f1_test, best, axis=1)[:, 0]
    concepts, latents = np.nonzero((valid > bound) & (test > bound))
    return Pairs(len(concepts), len(np.unique(latents)), len(np.unique(concepts)))


def best_concepts(f1_valid: Floats, f1_test: Floats, num_best: int) -> dict[str, NDArray[Any]]:
    """For each latent the concepts that it predicts best.

    Args:
        f1_valid: [C, T, n] selects concept and threshold.
        f1_test: [C, T, n].
        num_best: Concepts kept per latent.

    Returns:
        Columns, sorted by latent, then by falling validation F1; concepts that the latent never finds are left out.
    """
    num_concepts, _, num_latents = f1_valid.shape
    thresholds = np.argmax(f1_valid, axis=1)
    valid = np.take_along_axis(f1_valid, thresholds[:, None], axis=1)[:, 0]
    test = np.take_along_axis(f1_test, thresholds[:, None], axis=1)[:, 0]
    kept = min(num_best, num_concepts)
    ranked = np.argsort(-valid, axis=0, kind="stable")[:kept].T
    latents = np.repeat(np.arange(num_latents), kept)
    concepts = ranked.reshape(-1)
    found = valid[concepts, latents] > 0
    concepts, latents = concepts[found], latents[found]
    return {
        "latent": latents,
        "rank": (np.tile(np.arange(kept), num_latents) + 1)[found],
        "concept": concepts,
        "threshold": thresholds[concepts, latents],
        "f1_valid": valid[concepts, latents],
        "f1_test": test[concepts, latents],
    }
