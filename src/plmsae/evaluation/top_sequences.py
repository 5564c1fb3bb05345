"""For each unit the sequences that it fires on most, with its activations there, from one pass in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.residue_labels import Sparse

Ints = NDArray[np.int64]
_PENDING_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Runs:
    """Activations of units within sequences: a run is all of one unit in one sequence.

    Attributes:
        units: [G] unit of each run.
        sequences: [G] sequence.
        highest: [G] largest activation.
        pointers: [G + 1] the entries of run g are `pointers[g]:pointers[g + 1]`.
        positions: [E] 0-based position of each entry in its sequence, ascending within a run.
        values: [E] fp32 activation, > 0.
    """

    units: Ints
    sequences: Ints
    highest: NDArray[np.float32]
    pointers: Ints
    positions: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, activations: Sparse, starts: Ints, sequences: Ints) -> Runs:
        """All runs of a batch, by unit, then in the order of its sequences.

        Args:
            activations: [R, n]; entries that are not above 0 are no activations.
            starts: [B + 1] residues before each sequence of the batch.
            sequences: [B] number of each sequence.
        """
        columns = activations.tocsc()
        columns.sort_indices()
        on = columns.data > 0
        residues = columns.indices[on].astype(np.int64)
        units = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))[on]
        rows = np.searchsorted(starts, residues, side="right") - 1
        values = columns.data[on].astype(np.float32)
        first = np.ones(len(units), dtype=bool)
        first[1:] = (units[1:] != units[:-1]) | (rows[1:] != rows[:-1])
        places = np.flatnonzero(first)
        highest = np.maximum.reduceat(values, places) if len(places) else values
        return cls(
            units=units[places],
            sequences=sequences[rows[places]],
            highest=highest,
            pointers=np.append(places, len(units)),
            positions=(residues - starts[rows]).astype(np.int32),
            values=values,
        )

    def take(self, chosen: Ints) -> Runs:
        """Some of the runs, in the given order."""
        lengths = np.diff(self.pointers)[chosen]
        pointers = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.repeat(self.pointers[chosen] - pointers[:-1], lengths) + np.arange(pointers[-1])
        return Runs(
            self.units[chosen],
            self.sequences[chosen],
            self.highest[chosen],
            pointers,
            self.positions[entries],
            self.values[entries],
        )

    @classmethod
    def join(cls, pieces: Sequence[Runs]) -> Runs:
        """All runs of the pieces, in order."""
        lengths = np.concatenate([np.diff(piece.pointers) for piece in pieces])
        return cls(
            np.concatenate([piece.units for piece in pieces]),
            np.concatenate([piece.sequences for piece in pieces]),
            np.concatenate([piece.highest for piece in pieces]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([piece.positions for piece in pieces]),
            np.concatenate([piece.values for piece in pieces]),
        )

    def best(self, count: int) -> Runs:
        """The `count` runs of each unit with the highest maximum, by unit, then from the highest; ties by sequence."""
        order = np.lexsort((self.sequences, -self.highest, self.units))
        units = self.units[order]
        rank = np.arange(len(order)) - np.searchsorted(units, units)
        return self.take(order[rank < count])


class TopSequences:
    """Keeps the `count` best runs of each of n units, and how often and how strongly each unit fires.

    Attributes:
        num_sequences: Sequences seen.
        active_sequences: [n] sequences on which each unit fires.
        active_residues: [n] residues on which it fires.
        highest: [n] its largest activation.
    """

    def __init__(self, num_units: int, count: int) -> None:
        self.num_sequences = 0
        self.active_sequences = np.zeros(num_units, dtype=np.int64)
        self.active_residues = np.zeros(num_units, dtype=np.int64)
        self.highest: Floats = np.zeros(num_units)
        self._count = count
        self._pending: list[Runs] = []
        self._num_pending, self._limit = 0, _PENDING_ENTRIES

    def add(self, activations: Sparse, starts: Ints, sequences: Ints) -> Runs:
        """Take in a batch (see `Runs.of`) and return its runs."""
        runs = Runs.of(activations, starts, sequences)
        num_units = len(self.highest)
        self.num_sequences += len(sequences)
        self.active_sequences += np.bincount(runs.units, minlength=num_units)
        lengths = np.diff(runs.pointers)
        self.active_residues += np.bincount(runs.units, weights=lengths, minlength=num_units).astype(np.int64)
        np.maximum.at(self.highest, runs.units, runs.highest)
        best = runs.best(self._count)
        self._pending.append(best)
        self._num_pending += len(best.values)
        if self._num_pending > self._limit:
            kept = self.result()
            # Merging again only when as much has come as was kept: each entry is moved a bounded number of times.
            self._num_pending, self._limit = len(kept.values), max(2 * len(kept.values), _PENDING_ENTRIES)
        return runs

    def result(self) -> Runs:
        """The best runs so far (`Runs.best`)."""
        if not self._pending:
            nothing = np.zeros(0, dtype=np.int64)
            empty = np.zeros(0, dtype=np.float32)
            return Runs(nothing, nothing, empty, np.zeros(1, dtype=np.int64), nothing.astype(np.int32), empty)
        self._pending = [Runs.join(self._pending).best(self._count)]
        return self._pending[0]
