"""One pass over activations that counts everything the concept scores need, for all thresholds at once.

Each positive activation is put into the bin of the highest threshold that it exceeds. One sparse product with the
labels gives, per concept, bin and latent, the number of labelled residues; a reverse cumulative sum over bins turns
that into counts above each threshold. Instances are counted by the highest bin that any of their residues reaches.
Counts of batches add up, so that activations of a whole split never need to be in memory. The products are made for
many batches at a time: what a product costs beyond its multiplications is adding it to the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.errors import DataError
from plmsae.evaluation.residue_labels import Labels, Sparse, sums_by_row

RESIDUES_AT_ONCE = 32_768
Int32s = NDArray[np.int32]
Integer = TypeVar("Integer", np.int32, np.int64)


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
        self._pending: list[tuple[Sparse, Sparse, Sparse, Sparse]] = []
        self._num_pending = 0

    def add(self, activations: Sparse, labels: Labels) -> None:
        """Count a batch.

        Args:
            activations: [R, n] CSR fp32, normalised; only stored values above 0 matter.
            labels: Labels of the same residues.

        Raises:
            DataError: An activation is not a finite number.
        """
        _, num_thresholds, num_latents = self._shape
        values = activations.data
        if not np.isfinite(values).all():
            raise DataError("an activation is not a finite number", fix="train the SAE again, or check the store")
        bins = np.zeros(len(values), dtype=np.int64)
        for threshold in self.thresholds:
            bins += values > threshold
        on = bins > 0
        rows = np.repeat(np.arange(activations.shape[0]), np.diff(activations.indptr))[on]
        bins, latents = bins[on] - 1, activations.indices[on].astype(np.int64)
        pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=activations.shape[0]))])
        columns = bins * num_latents + latents
        self._active += np.bincount(columns, minlength=num_thresholds * num_latents).reshape(self._active.shape)
        binned = sparse.csr_matrix(
            (np.ones(len(columns), dtype=np.int32), columns, pointers),
            shape=(activations.shape[0], num_thresholds * num_latents),
        )
        reached = self._highest_bins(bins, latents, pointers, labels)
        self._pending.append((labels.residues, binned, labels.membership, reached))
        self._num_pending += activations.shape[0]
        if self._num_pending >= RESIDUES_AT_ONCE:
            self._multiply()

    def _multiply(self) -> None:
        """Bring what is pending into the counts."""
        if not self._pending:
            return
        labelled, binned, membership, reached = (list(parts) for parts in zip(*self._pending))
        self._pending, self._num_pending = [], 0
        residues = sparse.vstack(labelled, format="csr").T.tocsr()
        for total, left, right in (
            (self._true_positives, residues, binned),
            (self._hits, sparse.hstack(membership, format="csr"), reached),
        ):
            total += (left @ sparse.vstack(right, format="csr")).toarray().reshape(self._shape)

    def _highest_bins(
        self, bins: NDArray[np.int64], latents: NDArray[np.int64], pointers: NDArray[np.int64], labels: Labels
    ) -> Sparse:
        """[A, T·n] CSR: 1 at the highest bin that each latent reaches within each annotation.

        A sum does the work of a maximum: a residue in bin b weighs base^b with base above the number of residues of
        any annotation, so that the order of magnitude of the sum is the highest bin.
        """
        _, num_thresholds, num_latents = self._shape
        longest = int(np.diff(labels.annotations.indptr).max(initial=1))
        digits = longest.bit_length()
        weights = np.ldexp(1.0, digits * bins)
        weighted = sparse.csr_matrix((weights, latents, pointers), shape=(len(pointers) - 1, num_latents))
        reached = labels.annotations.astype(np.float64) @ weighted
        highest = (np.frexp(reached.data)[1] - 1) // digits
        columns = highest.astype(np.int64) * num_latents + reached.indices
        return sparse.csr_matrix(
            (np.ones(len(columns), dtype=np.int32), columns, reached.indptr),
            shape=(reached.shape[0], num_thresholds * num_latents),
        )

    def result(self) -> Counts:
        """The counts so far."""
        self._multiply()
        return Counts(true_positives=_above(self._true_positives), hits=_above(self._hits), active=_above(self._active))


def _above(counts: NDArray[Integer]) -> NDArray[Integer]:
    """Counts per bin [..., T, n] -> counts above each threshold."""
    return np.flip(np.cumsum(np.flip(counts, -2), axis=-2, dtype=counts.dtype), -2)


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
