"""Which of a few candidate latents fire on which residues of a concept, counted by pattern in one bounded pass.

Every concept has up to 62 predictors, a latent at a threshold each, and every predictor a bit. A residue's mask has the
bits of the predictors that mark it, an instance's mask those that mark any of its residues. How often each mask
occurs, on all residues, on labelled ones and over instances, says what any union of predictors would score, without
another pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.residue_labels import Labels, Sparse
from plmsae.evaluation.scores import NO_LATENT

Ints = NDArray[np.int64]
_MERGE_AT = 2_000_000


@dataclass(frozen=True)
class BitPredictors:
    """Predictors of C concepts.

    Attributes:
        units: [C, B] latent of each bit, `NO_LATENT` for an unused bit.
        thresholds: [C, B] index of its threshold.
    """

    units: Ints
    thresholds: Ints

    def masks(self, activations: Sparse, levels: NDArray[np.float32]) -> Ints:
        """Masks [R, C] of residues.

        Args:
            activations: [R, n] CSR, normalised.
            levels: The thresholds.
        """
        num_concepts, num_latents = len(self.units), activations.shape[1]
        concept, bit = np.nonzero(self.units != NO_LATENT)
        key = self.thresholds[concept, bit] * num_latents + self.units[concept, bit]
        wanted, column = np.unique(key, return_inverse=True)
        weights = sparse.csr_matrix((np.left_shift(np.int64(1), bit), (column, concept)), (len(wanted), num_concepts))
        place = np.full(len(levels) * num_latents, -1, dtype=np.int64)
        place[wanted] = np.arange(len(wanted))
        residues = np.repeat(np.arange(activations.shape[0]), np.diff(activations.indptr))
        rows, columns = [], []
        for number, level in enumerate(levels):
            at = place[number * num_latents + activations.indices]
            on = (activations.data > level) & (at >= 0)
            rows.append(residues[on])
            columns.append(at[on])
        row, on_column = np.concatenate(rows), np.concatenate(columns)
        marked = sparse.csr_matrix(
            (np.ones(len(row), dtype=np.int64), (row, on_column)), (activations.shape[0], len(wanted))
        )
        # A bit belongs to one predictor of a concept, so that the sum of its powers of two is their union.
        return np.asarray((marked @ weights).toarray(), dtype=np.int64)


def instance_masks(masks: Ints, labels: Labels) -> tuple[Ints, Ints]:
    """Masks of the instances of every concept.

    Args:
        masks: [R, C] of residues.
        labels: Labels of the residues.

    Returns:
        [I] concept of each instance, and [I] its mask.
    """
    membership = labels.membership.tocoo()
    concepts, instances = membership.row.astype(np.int64), membership.col.astype(np.int64)
    pointers = labels.annotations.indptr
    counts = np.diff(pointers)[instances]
    if not len(instances):
        return concepts, np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    within = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    residues = labels.annotations.indices[np.repeat(pointers[instances], counts) + within]
    return concepts, np.bitwise_or.reduceat(masks[residues, np.repeat(concepts, counts)], starts)


@dataclass(frozen=True)
class Patterns:
    """How often masks other than 0 occur, for one concept.

    Attributes:
        masks: [K] different masks of residues.
        residues: [K] residues with each.
        labelled: [K] of them labelled.
        instance_masks: [J] different masks of instances.
        instances: [J] instances with each.
    """

    masks: Ints
    residues: Ints
    labelled: Ints
    instance_masks: Ints
    instances: Ints

    def union(self, sets: Ints) -> tuple[Ints, Ints, Ints]:
        """Labelled residues, instances and residues that each union of predictors marks.

        Args:
            sets: [S] bits of each union.
        """
        on = (self.masks[:, None] & sets) != 0
        hit = (self.instance_masks[:, None] & sets) != 0
        return self.labelled @ on, self.instances @ hit, self.residues @ on


class PatternCounter:
    """Counts patterns over batches.

    Args:
        num_concepts: C.
    """

    def __init__(self, num_concepts: int) -> None:
        self._num_concepts = num_concepts
        # Columns: 3 x concept + kind (0 unlabelled, 1 labelled residue, 2 instance), mask, count.
        self._pieces: list[Ints] = []
        self._size = 0

    def add(self, tally: Ints) -> None:
        """Take in what `tally` returned for a batch."""
        self._pieces.append(tally)
        self._size += tally.shape[1]
        if self._size > _MERGE_AT:
            self._pieces = [_merged(self._pieces)]
            self._size = self._pieces[0].shape[1]

    def result(self) -> list[Patterns]:
        """Patterns of every concept."""
        key, mask, count = _merged(self._pieces) if self._pieces else np.zeros((3, 0), dtype=np.int64)
        bounds = np.searchsorted(key, np.arange(3 * self._num_concepts + 1))
        found = []
        for concept in range(self._num_concepts):
            plain, labelled, instance = (
                slice(bounds[3 * concept + kind], bounds[3 * concept + kind + 1]) for kind in range(3)
            )
            masks = np.union1d(mask[plain], mask[labelled])
            total, inside = np.zeros(len(masks), dtype=np.int64), np.zeros(len(masks), dtype=np.int64)
            inside[np.searchsorted(masks, mask[labelled])] = count[labelled]
            total[np.searchsorted(masks, mask[plain])] = count[plain]
            found.append(Patterns(masks, total + inside, inside, mask[instance], count[instance]))
        return found


def tally(masks: Ints, labels: Labels) -> Ints:
    """[3, K] counts of the masks of a batch, for `PatternCounter.add`."""
    residue, concept = np.nonzero(masks)
    labelled = labels.residues.toarray()[residue, concept] > 0
    of_instance, mask = instance_masks(masks, labels)
    some = mask != 0
    key = np.concatenate([3 * concept + labelled, 3 * of_instance[some] + 2])
    value = np.concatenate([masks[residue, concept], mask[some]])
    return _merged([np.stack([key, value, np.ones_like(key)])])


def _merged(pieces: Sequence[Ints]) -> Ints:
    """Counts of equal key and mask added up; sorted by key, then by mask."""
    key, mask, count = np.concatenate(pieces, axis=1)
    order = np.lexsort((mask, key))
    key, mask, count = key[order], mask[order], count[order]
    if not len(key):
        return np.zeros((3, 0), dtype=np.int64)
    first = np.ones(len(key), dtype=bool)
    first[1:] = (key[1:] != key[:-1]) | (mask[1:] != mask[:-1])
    starts = np.flatnonzero(first)
    return np.stack([key[starts], mask[starts], np.add.reduceat(count, starts)])
