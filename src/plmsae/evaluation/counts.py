"""One pass over activations that counts everything the concept scores need, for all thresholds at once.

Each positive activation gets the level of the highest threshold that it exceeds. Per concept, level and latent the
activations of labelled residues are counted; adding up from the highest level down turns that into counts above each
threshold. Instances are counted by the highest level that any of their residues reaches. Counts of batches add up, so
that activations of a whole split never need to be in memory.

The work is one increment for every activation of every labelled residue, and again for every residue of an instance.
The table of counts is larger than a processor's cache, so increments are made concept by concept, for many batches at
a time: each concept's part of the table then comes into the cache once. `np.add.at` and `np.maximum.at` take about 1 ns
an increment where the table and the values have one type and the indices are int64, as here, and 40 ns otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.errors import DataError
from plmsae.evaluation.residue_labels import Labels, Sparse, sums_by_row

RESIDUES_AT_ONCE = 16_384  # of which activations are kept before they are counted
ROWS_AT_ONCE = 2_048  # residues whose activations are copied to be counted
INSTANCES_AT_ONCE = 32  # dense rows [n] of levels: 0.3 MB with 10,240 latents, which stays in the cache
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Counts of n latents at T thresholds (activation > threshold) against C concepts.

    Attributes:
        true_positives: [C, T, n] labelled residues on which the latent is active.
        hits: [C, T, n] annotation instances with at least one active residue.
        active: [T, n] residues on which the latent is active.
    """

    true_positives: Int32s
    hits: Int32s
    active: NDArray[np.int64]


class ConceptCounter:
    """Adds up counts over batches of sequences.

    Args:
        num_concepts: C.
        num_latents: n.
        thresholds: T ascending thresholds, the lowest at least 0; compared in fp32, strictly.
    """

    def __init__(self, num_concepts: int, num_latents: int, thresholds: Sequence[float]) -> None:
        self.thresholds = np.asarray(thresholds, dtype=np.float32)
        if len(thresholds) == 0 or self.thresholds[0] < 0 or (np.diff(self.thresholds) <= 0).any():
            raise ValueError(f"thresholds must ascend from at least 0, got {thresholds}")
        self._shape = (num_concepts, len(thresholds), num_latents)
        self._true_positives = np.zeros(self._shape, dtype=np.int32)
        self._hits = np.zeros(self._shape, dtype=np.int32)
        self._active = np.zeros(self._shape[1:], dtype=np.int64)
        self._level = np.min_scalar_type(len(thresholds))
        self._pending: list[tuple[Sparse, Labels]] = []
        self._num_pending = 0
        self._result: Counts | None = None

    def add(self, activations: Sparse, labels: Labels) -> None:
        """Count a batch.

        Args:
            activations: [R, n] CSR fp32, normalised; only stored values above 0 matter.
            labels: Labels of the same residues.

        Raises:
            DataError: An activation is not a finite number.
            ValueError: The result was taken already.
        """
        if self._result is not None:
            raise ValueError("the counts were taken already")
        values = activations.data
        if not np.isfinite(values).all():
            raise DataError("an activation is not a finite number", fix="train the SAE again, or check the store")
        found = np.zeros(len(values), dtype=self._level)
        for threshold in self.thresholds:
            found += (values > threshold).view(np.uint8)
        levels = sparse.csr_matrix(
            (found, activations.indices, activations.indptr), shape=activations.shape, dtype=found.dtype, copy=True
        )
        levels.eliminate_zeros()
        self._pending.append((levels, labels))
        self._num_pending += activations.shape[0]
        if self._num_pending >= RESIDUES_AT_ONCE:
            self._count_pending()

    def _count_pending(self) -> None:
        """Bring what is pending into the counts."""
        if not self._pending:
            return
        levels = sparse.vstack([levels for levels, _ in self._pending], format="csr")
        labels = [labels for _, labels in self._pending]
        self._pending, self._num_pending = [], 0
        self._count_residues(levels, sparse.vstack([each.residues for each in labels]).T.tocsr())
        self._count_instances(
            levels,
            sparse.block_diag([each.annotations for each in labels], format="csr"),
            sparse.hstack([each.membership for each in labels], format="csr"),
        )

    def _count_residues(self, levels: Sparse, concepts: Sparse) -> None:
        """Count the activations of residues, and of labelled ones for their concepts.

        Args:
            levels: [R, n] CSR, levels 1 to T.
            concepts: [C, R] CSR: the residues of each concept.
        """
        _, num_thresholds, num_latents = self._shape
        cells = np.multiply(levels.data, num_latents, dtype=np.int32) + (levels.indices - num_latents)
        self._active += np.bincount(cells, minlength=self._active.size).reshape(self._active.shape)
        counted = sparse.csr_matrix(
            (levels.data, cells, levels.indptr), shape=(levels.shape[0], num_thresholds * num_latents)
        )
        starts = self._starts(concepts)
        for first in range(0, len(starts), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            picked = counted[concepts.indices[part]]
            _increment(self._true_positives, _repeated(starts[part], picked.indptr) + picked.indices)

    def _count_instances(self, levels: Sparse, annotations: Sparse, membership: Sparse) -> None:
        """Count instances by the highest level that each latent reaches in them.

        Args:
            levels: [R, n] CSR, levels 1 to T.
            annotations: [A, R] CSR: the residues of each instance.
            membership: [C, A] CSR: the instances of each concept.
        """
        num_latents = self._shape[2]
        starts = self._starts(membership)
        instances = annotations[membership.indices]
        highest = np.zeros(INSTANCES_AT_ONCE * num_latents, dtype=levels.dtype)
        for first, last in pairwise(_pieces(np.diff(instances.indptr))):
            residues = instances.indices[instances.indptr[first] : instances.indptr[last]]
            picked = levels[residues]
            row_starts = np.arange(last - first + 1) * num_latents
            pointers = picked.indptr[instances.indptr[first : last + 1] - instances.indptr[first]]
            highest.fill(0)
            np.maximum.at(highest, _repeated(row_starts[:-1], pointers) + picked.indices, picked.data)
            reached = np.flatnonzero(highest > 0)
            cells = np.multiply(highest[reached], num_latents, dtype=np.int64) + reached
            offsets = starts[first:last] - row_starts[:-1] - num_latents
            _increment(self._hits, cells + _repeated(offsets, np.searchsorted(reached, row_starts)))

    def _starts(self, of_concepts: Sparse) -> Int64s:
        """For each stored entry of a CSR [C, ...], where the counts of its concept start in the flat table."""
        _, num_thresholds, num_latents = self._shape
        return _repeated(np.arange(of_concepts.shape[0]) * (num_thresholds * num_latents), of_concepts.indptr)

    def result(self) -> Counts:
        """The counts; nothing can be added afterwards, as the tables are not copied."""
        if self._result is None:
            self._count_pending()
            for table in (self._true_positives, self._hits, self._active):
                _add_up(table)
            self._result = Counts(true_positives=self._true_positives, hits=self._hits, active=self._active)
        return self._result


def _repeated(values: Int64s, pointers: NDArray[Any]) -> Int64s:
    """Each value as often as its row of a CSR with these pointers has entries."""
    return np.repeat(values, np.diff(pointers))


def _increment(table: Int32s, cells: Int64s) -> None:
    """Add 1 for each number of a cell of the flat table."""
    np.add.at(table.reshape(-1), cells, np.int32(1))


def _pieces(lengths: NDArray[Any]) -> list[int]:
    """Cut consecutive instances into pieces of at most `INSTANCES_AT_ONCE`, with some `ROWS_AT_ONCE` residues.

    Each instance takes up its residues and its share of `ROWS_AT_ONCE`; a piece begins where another `ROWS_AT_ONCE`
    is full.

    Args:
        lengths: [A] residues of each instance.

    Returns:
        The first instance of each piece, and A.
    """
    ends = np.cumsum(lengths + ROWS_AT_ONCE // INSTANCES_AT_ONCE)
    return [0, *(np.flatnonzero(np.diff(ends // ROWS_AT_ONCE)) + 1).tolist(), len(lengths)]


def _add_up(table: NDArray[Any]) -> None:
    """Counts per level [..., T, n] -> counts above each threshold, in place."""
    for level in reversed(range(table.shape[-2] - 1)):
        table[..., level, :] += table[..., level + 1, :]


@dataclass(frozen=True)
class RowCounts:
    """Counts of S fixed predictors on each sequence, for bootstrapping over proteins.

    Attributes:
        true_positives: [num_rows, S] labelled residues that are predicted.
        hits: [num_rows, S] annotation instances with at least one predicted residue.
        active: [num_rows, S] predicted residues.
    """

    true_positives: Int32s
    hits: Int32s
    active: Int32s

    def columns(self, which: slice) -> RowCounts:
        """Counts of some of the predictors."""
        return RowCounts(self.true_positives[:, which], self.hits[:, which], self.active[:, which])

    @classmethod
    def concatenate(cls, pieces: Sequence[RowCounts]) -> RowCounts:
        """Counts of consecutive batches as one."""
        return cls(
            true_positives=np.concatenate([piece.true_positives for piece in pieces]),
            hits=np.concatenate([piece.hits for piece in pieces]),
            active=np.concatenate([piece.active for piece in pieces]),
        )


def count_rows(on: NDArray[np.bool_], concepts: NDArray[np.int64], labels: Labels) -> RowCounts:
    """Counts per sequence of predictors that each speak for one concept.

    Args:
        on: [R, S] residues that each predictor marks.
        concepts: [S] the concept of each predictor.
        labels: Labels of the R residues.
    """
    marks = on.astype(np.int32)
    labelled = labels.residues[:, concepts].toarray()
    instances = labels.membership[concepts].T.toarray()
    hit = (labels.annotations @ marks) > 0
    return RowCounts(
        true_positives=sums_by_row(marks * labelled, labels.row_starts).astype(np.int32),
        hits=sums_by_row(hit * instances, labels.annotation_starts).astype(np.int32),
        active=sums_by_row(marks, labels.row_starts).astype(np.int32),
    )
