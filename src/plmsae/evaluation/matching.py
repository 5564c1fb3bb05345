"""Which latents of two dictionaries are the same: by their atoms, and by what they fire on.

Decoder cosine: the cosine of two atoms. It needs activations of one width, and means something where both SAEs read the
same residual stream.

Activation correlation: Pearson's r of two latents' activations over residues, 0 for a latent that never fires. It needs
nothing in common but the residues, so that SAEs of any layers, models and widths can be compared. It is exact: the five
sums of r are added up batch by batch from the sparse codes.

A match is the most similar latent of the other dictionary (of equal ones the first), which several latents may share;
`one_to_one` is the assignment with the largest total similarity (scipy's linear_sum_assignment, Crouse 2016). The
largest of thousands of similarities is large by chance too. Two things answer for that: matches are chosen on
validation proteins and their r is reported on test proteins; and the same is done with a permuted dictionary. Its SAE
reads mu + P (x - mu), P one permutation of the model's dimensions and mu the mean activation: a dictionary of the same
geometry that lies in other directions. Its atoms are the permuted ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from plmsae.errors import DataError
from plmsae.evaluation.bootstrap import Interval, percentile_bounds, resampled_sums
from plmsae.evaluation.residue_labels import Sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_PARTNER = -1
# Sums are rounded to this step where they are resampled: sums of whole numbers do not depend on their order.
_STEPS = 2.0**24
_PAIRS_AT_ONCE = 256


def decoder_cosines(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines [n, m] of atoms [n, d] and [m, d], fp32; 0 where an atom has no length.

    Raises:
        DataError: They are of different widths.
    """
    if ours.shape[1] != theirs.shape[1]:
        raise DataError(
            f"atoms of widths {ours.shape[1]} and {theirs.shape[1]} have no cosine", fix="compare their activations"
        )
    return np.asarray(_unit(ours) @ _unit(theirs).T)


def _unit(atoms: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(atoms.astype(np.float64), axis=1, keepdims=True)
    return np.where(lengths > 0, atoms / np.where(lengths > 0, lengths, 1.0), 0.0).astype(np.float32)


class Correlation:
    """Pearson's r of all pairs of latents of two dictionaries, from sums over batches.

    Memory is the one matrix of n m fp64 numbers.

    Args:
        num_ours: n.
        num_theirs: m.
    """

    def __init__(self, num_ours: int, num_theirs: int) -> None:
        self._products = np.zeros((num_ours, num_theirs))
        # Sums, squares and residues on which a latent fires.
        self._ours, self._theirs = np.zeros((3, num_ours)), np.zeros((3, num_theirs))
        self._rows = 0

    def add(self, ours: Sparse, theirs: Sparse) -> None:
        """Take in activations [R, n] and [R, m] (CSR) of the same residues."""
        left, right = ours.astype(np.float64), theirs.astype(np.float64)
        batch = (left.T.tocsr() @ right).tocsr()
        places = np.repeat(np.arange(batch.shape[0]) * batch.shape[1], np.diff(batch.indptr)) + batch.indices
        self._products.reshape(-1)[places] += batch.data
        for total, part in ((self._ours, left), (self._theirs, right)):
            total[0] += np.asarray(part.sum(axis=0))[0]
            total[1] += np.asarray(part.multiply(part).sum(axis=0))[0]
            total[2] += np.asarray((part > 0).sum(axis=0))[0]
        self._rows += ours.shape[0]

    def rates(self) -> tuple[Floats, Floats]:
        """[n] and [m] share of residues on which each latent fired."""
        return self._ours[2] / max(self._rows, 1), self._theirs[2] / max(self._rows, 1)

    def result(self) -> NDArray[np.float32]:
        """r [n, m]."""
        r = np.empty(self._products.shape, dtype=np.float32)
        for start in range(0, len(r), 1024):  # the matrix once, not three times
            part = slice(start, start + 1024)
            r[part] = pearson(
                self._rows,
                self._ours[0, part, None],
                self._ours[1, part, None],
                self._theirs[0],
                self._theirs[1],
                self._products[part],
            )
        return r


def pearson(count: float | Floats, x: Floats, xx: Floats, y: Floats, yy: Floats, xy: Floats) -> Floats:
    """Pearson's r from sums over `count` residues, in [-1, 1]; 0 where either does not vary. Arguments broadcast."""
    above = count * xy - x * y
    left, right = count * xx - x * x, count * yy - y * y
    # What rounding leaves of a constant is no variation.
    varies = (left > 1e-12 * count * xx) & (right > 1e-12 * count * yy)
    below = np.sqrt(np.where(varies, left, 1.0)) * np.sqrt(np.where(varies, right, 1.0))
    return np.where(varies, np.clip(above / below, -1.0, 1.0), 0.0)


def best_match(similarity: NDArray[np.float32]) -> Ints:
    """[n] the most similar latent of the other dictionary, by rows."""
    return np.asarray(np.argmax(similarity, axis=1), dtype=np.int64)


def one_to_one(similarity: NDArray[np.float32]) -> Ints:
    """[n] partner of each row in the assignment of the largest total similarity, `NO_PARTNER` where there are too few.

    Its time grows with the third power of the dictionary's size.
    """
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    partners = np.full(len(similarity), NO_PARTNER, dtype=np.int64)
    partners[rows] = columns
    return partners


def share_above(similarity: Floats, counted: NDArray[np.bool_], threshold: float) -> float:
    """Share of the counted latents whose similarity reaches the threshold; 0 if none counts."""
    return float((similarity[counted] >= threshold).mean()) if counted.any() else 0.0


@dataclass(frozen=True)
class PairSums:
    """Sums over each protein's residues that r of given pairs of latents is a function of.

    Attributes:
        counts: [P] residues.
        ours: Activations and their squares of the first latents, two CSR [P, K].
        theirs: The same of the second latents.
        products: Of the two, CSR [P, K].
    """

    counts: Ints
    ours: tuple[Sparse, Sparse]
    theirs: tuple[Sparse, Sparse]
    products: Sparse

    @classmethod
    def of(cls, ours: Sparse, theirs: Sparse, pairs: tuple[Ints, Ints], owners: Ints, num_proteins: int) -> PairSums:
        """Sums of a batch.

        Args:
            ours: [R, n] CSR.
            theirs: [R, m] CSR.
            pairs: [K] latents of ours and [K] of theirs.
            owners: [R] protein of each residue.
            num_proteins: P.
        """
        left = ours.astype(np.float64).tocsc()[:, pairs[0]].tocsr()
        right = theirs.astype(np.float64).tocsc()[:, pairs[1]].tocsr()
        gather = sparse.csr_matrix(
            (np.ones(len(owners)), (owners, np.arange(len(owners)))), shape=(num_proteins, len(owners))
        )
        return cls(
            np.bincount(owners, minlength=num_proteins),
            ((gather @ left).tocsr(), (gather @ left.multiply(left)).tocsr()),
            ((gather @ right).tocsr(), (gather @ right.multiply(right)).tocsr()),
            (gather @ left.multiply(right)).tocsr(),
        )

    @classmethod
    def total(cls, pieces: Sequence[PairSums]) -> PairSums:
        """Sums of several batches as one."""
        return cls(
            np.sum([piece.counts for piece in pieces], axis=0),
            (_sum([piece.ours[0] for piece in pieces]), _sum([piece.ours[1] for piece in pieces])),
            (_sum([piece.theirs[0] for piece in pieces]), _sum([piece.theirs[1] for piece in pieces])),
            _sum([piece.products for piece in pieces]),
        )

    def correlations(self) -> Floats:
        """[K] r over all proteins."""
        sums = [np.asarray(part.sum(axis=0))[0] for part in (*self.ours, *self.theirs, self.products)]
        return pearson(float(self.counts.sum()), *sums)

    def shares(
        self,
        counted: NDArray[np.bool_],
        thresholds: list[float],
        *,
        num_resamples: int,
        confidence: float,
        seed: int,
        of_ours: bool,
        never: NDArray[np.bool_] | None = None,
    ) -> list[Interval]:
        """Share of the counted pairs whose r reaches each threshold, with bootstrap intervals over proteins.

        A latent that does not fire on these proteins, or in a resample, is left out there: nothing is known of it.
        A resample has fewer different proteins, so rare latents drop out of it and shares rise: the interval has the
        spread of the resamples, moved to lie about the estimate.

        Args:
            counted: [K] pairs that the share is of, as far as they fire.
            thresholds: Values of r.
            num_resamples: Resamples.
            confidence: Coverage.
            seed: Seed.
            of_ours: Whether it is our latent of a pair, not theirs, that has to fire.
            never: [K] pairs that count but have no partner: they reach no threshold.
        """
        alone = np.zeros(len(counted), dtype=bool) if never is None else never
        squares = self.ours[1] if of_ours else self.theirs[1]
        fires = counted & (np.asarray(squares.sum(axis=0))[0] > 0)
        values = np.where(alone, -np.inf, self.correlations())
        which, number = np.flatnonzero(counted), np.zeros(num_resamples)
        above = np.zeros((num_resamples, len(thresholds)))
        counts = resampled_sums(self.counts, num_resamples, seed)[:, None]
        parts = [part.tocsc() for part in (*self.ours, *self.theirs, self.products)]
        for start in range(0, len(which), _PAIRS_AT_ONCE):
            some = which[start : start + _PAIRS_AT_ONCE]
            steps = [np.rint(part[:, some].toarray() * _STEPS).astype(np.int64) for part in parts]
            drawn = [resampled_sums(each, num_resamples, seed) / _STEPS for each in steps]
            r = np.where(alone[some], -np.inf, pearson(counts, *drawn))
            number += (drawn[1 if of_ours else 3] > 0).sum(axis=1)
            above += np.stack([(r >= threshold).sum(axis=1) for threshold in thresholds], axis=1)
        samples = above / np.maximum(number, 1)[:, None]
        value = np.array([share_above(values, fires, threshold) for threshold in thresholds])
        low, high = np.clip(percentile_bounds(samples + (value - samples.mean(axis=0)), confidence), 0.0, 1.0)
        return [Interval(*map(float, each)) for each in zip(value, low, high, strict=True)]


def _sum(parts: Sequence[Sparse]) -> Sparse:
    """The sum of many sparse matrices at once: adding them one by one would copy what there is each time."""
    pieces = [part.tocoo() for part in parts]
    rows, columns = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("row", "col"))
    return sparse.csr_matrix((np.concatenate([piece.data for piece in pieces]), (rows, columns)), shape=parts[0].shape)
