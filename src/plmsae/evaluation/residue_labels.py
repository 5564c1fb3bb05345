"""Labels of residues and annotation instances as sparse matrices, sliced by sequence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.labels import Ints, annotation_residues

Sparse = Any  # scipy.sparse.csr_matrix; scipy ships no types
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """Labels of R residues in consecutive sequences, with A annotations of C concepts.

    Attributes:
        residues: [R, C] CSR of 0/1 (int32): residue belongs to concept. A residue under two overlapping instances of
            a concept counts once.
        annotations: [A, R] CSR of 0/1 (int32): the residues of each instance; instances may overlap.
        membership: [C, A] CSR of 0/1 (int32): the concepts of each instance (its type, and what it names).
        row_starts: [num_rows + 1] residues before each sequence.
        annotation_starts: [num_rows + 1] annotations before each sequence.
    """

    residues: Sparse
    annotations: Sparse
    membership: Sparse
    row_starts: Ints
    annotation_starts: Ints

    @classmethod
    def build(
        cls,
        lengths: Ints,
        rows: Ints,
        starts: Ints,
        ends: Ints,
        paired: NDArray[np.bool_],
        concepts: Ints,
        num_concepts: int,
    ) -> Labels:
        """Labels of sequences from their annotations.

        Args:
            lengths: [num_rows] residues of each sequence.
            rows: [A] sequence of each annotation, in any order.
            starts: [A] 0-based first residue.
            ends: [A] one past the last residue.
            paired: [A] true where only the first and the last residue are meant.
            concepts: [A, 2] concepts of each annotation, -1 for none; annotations without any are left out.
            num_concepts: C.
        """
        order = np.argsort(rows, kind="stable")
        order = order[(concepts[order] >= 0).any(axis=1)]
        rows, starts, ends = rows[order], starts[order], ends[order]
        paired, concepts = paired[order], concepts[order]
        row_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        offsets, members = annotation_residues(rows, starts, ends, paired, row_starts)
        num_annotations, num_residues = len(rows), int(row_starts[-1])
        owner = np.repeat(np.arange(num_annotations), np.diff(offsets))
        annotation, column = np.nonzero(concepts >= 0)
        membership = _indicator(concepts[annotation, column], annotation, (num_concepts, num_annotations))
        annotations = _indicator(owner, members, (num_annotations, num_residues))
        residues = sparse.csr_matrix((membership @ annotations).T)
        residues.data[:] = 1
        return cls(
            residues=residues,
            annotations=annotations,
            membership=membership,
            row_starts=row_starts,
            annotation_starts=np.searchsorted(rows, np.arange(len(lengths) + 1)),
        )

    @property
    def num_rows(self) -> int:
        """Number of sequences."""
        return len(self.row_starts) - 1

    @property
    def num_residues(self) -> int:
        """R."""
        return int(self.residues.shape[0])

    @property
    def num_concepts(self) -> int:
        """C."""
        return int(self.residues.shape[1])

    def batch(self, first: int, last: int) -> Labels:
        """Labels of the sequences `first` up to, not including, `last`."""
        low, high = self.row_starts[first], self.row_starts[last]
        a_low, a_high = self.annotation_starts[first], self.annotation_starts[last]
        pointers = self.annotations.indptr[a_low : a_high + 1]
        inside = slice(pointers[0], pointers[-1])
        annotations = sparse.csr_matrix(
            (self.annotations.data[inside], self.annotations.indices[inside] - low, pointers - pointers[0]),
            shape=(a_high - a_low, high - low),
        )
        return Labels(
            residues=self.residues[low:high],
            annotations=annotations,
            membership=self._annotation_concepts[a_low:a_high].T.tocsr(),
            row_starts=self.row_starts[first : last + 1] - low,
            annotation_starts=self.annotation_starts[first : last + 1] - a_low,
        )

    @cached_property
    def _annotation_concepts(self) -> Sparse:
        return self.membership.T.tocsr()

    def num_residues_of(self) -> Counts:
        """[C] labelled residues of each concept."""
        found: Counts = np.bincount(self.residues.indices, minlength=self.num_concepts)
        return found

    def num_instances_of(self) -> Counts:
        """[C] annotation instances of each concept."""
        return np.asarray(np.diff(self.membership.indptr), dtype=np.int64)

    def residues_per_row(self) -> Counts:
        """[num_rows, C] labelled residues of each sequence."""
        return sums_by_row(self.residues, self.row_starts)

    def instances_per_row(self) -> Counts:
        """[num_rows, C] annotation instances of each sequence."""
        return sums_by_row(self._annotation_concepts, self.annotation_starts)


def sums_by_row(values: Any, starts: Ints) -> Counts:
    """Sum consecutive groups of rows.

    Args:
        values: [N, ...] dense or sparse.
        starts: [num_groups + 1] first row of each group; groups may be empty.

    Returns:
        Dense [num_groups, ...] int64.
    """
    num_rows = values.shape[0]
    groups = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    summed = _indicator(groups, np.arange(num_rows), (len(starts) - 1, num_rows)) @ values
    return np.asarray(summed.toarray() if sparse.issparse(summed) else summed).astype(np.int64)


def _indicator(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Sparse:
    return sparse.csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=shape)
