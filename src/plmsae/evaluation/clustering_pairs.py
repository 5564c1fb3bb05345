"""How a latent's activation lies around its strongest residue, for all latents of some proteins at once.

For a protein of L residues with activations a and anchor c = argmax a (the first of equals), a neighbourhood N(c) is a
set of residues without c, and its score the mean of a over N(c):

    sequence   0 < |j - c| <= window
    structure  Cα of j within `radius` of that of c, j != c
    apart_w    structure, and |j - c| > w in sequence

Null. Permuting all L activations over the residues (the published null) makes a score the mean of m = |N(c)| values
drawn without replacement, so that its mean and variance are known without drawing:

    E = mean(a),   Var = sigma^2 / m (L - m) / (L - 1),   sigma^2 = mean(a^2) - mean(a)^2   (finite population)
    third central moment = mu_3 / m^2 (L - m) (L - 2 m) / ((L - 1) (L - 2)),   mu_3 = mean((a - mean(a))^3)

The average of r permutations has the same mean and Var / r. `held_out` permutes all but the anchor: the same with the
L - 1 other activations. That is the null under which the anchor is the largest, as it is by choice.

Sums run over stored activations alone: the cost is that of the codes, not of residues x latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.evaluation.residue_labels import Sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbourhoods:
    """Which residues are neighbours.

    Attributes:
        window: Residues to either side in sequence.
        radius: Å between Cα atoms.
        separations: Sequence distances up to which residues are left out of the structural set, one variant each.
        structure: Whether neighbours in structure are looked at.
    """

    window: int = 2
    radius: float = 6.0
    separations: tuple[int, ...] = (2, 6)
    structure: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """`sequence`; and, with structure, `structure` and one name per separation."""
        if not self.structure:
            return ("sequence",)
        return ("sequence", "structure", *(f"apart_{each}" for each in self.separations))


@dataclass(frozen=True)
class Pairs:
    """P pairs of a sequence and a latent that is active above the threshold on it; S neighbourhoods.

    Attributes:
        row: [P] sequence.
        latent: [P] latent.
        anchor: [P] 0-based residue of the largest activation.
        highest: [P] that activation.
        length: [P] residues of the sequence.
        mean: [P] mean activation over all residues.
        variance: [P] its finite-population variance.
        third: [P] its finite-population third central moment.
        sizes: [P, S] neighbours; 0 where there are none, or the anchor has no coordinates.
        observed: [P, S] mean activation of the neighbours; NaN without any.
        permuted: [P, S] the same averaged over random permutations of all activations; NaN if none were drawn.
    """

    row: Ints
    latent: Ints
    anchor: Ints
    highest: Floats
    length: Ints
    mean: Floats
    variance: Floats
    third: Floats
    sizes: Ints
    observed: Floats
    permuted: Floats

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: Ints) -> Pairs:
        """Some of the pairs."""
        return Pairs(**{item.name: getattr(self, item.name)[which] for item in fields(self)})

    @classmethod
    def concatenate(cls, pieces: Sequence[Pairs]) -> Pairs:
        """Pairs of several batches as one."""
        return cls(**{item.name: np.concatenate([getattr(p, item.name) for p in pieces]) for item in fields(cls)})

    def exact_null(self) -> tuple[Floats, Floats]:
        """Mean and variance [P, S] of a score under one permutation of all activations."""
        return _moments(self.mean, self.variance, self.length, self.sizes)

    def exact_third(self) -> Floats:
        """Third central moment [P, S] of a score under one permutation of all activations."""
        m, n = self.sizes.astype(np.float64), self.length.astype(np.float64)[:, None]
        some = (m > 0) & (n >= m)
        below = np.maximum(m, 1) ** 2 * np.maximum((n - 1) * (n - 2), 1)
        return np.where(some, self.third[:, None] * (n - m) * (n - 2 * m) / below * (n > 2), np.nan)

    def held_out_null(self) -> tuple[Floats, Floats]:
        """Mean and variance [P, S] of a score under one permutation of all activations but the anchor's."""
        others = np.maximum(self.length - 1, 1)
        mean = (self.mean * self.length - self.highest) / others
        square = ((self.variance + self.mean**2) * self.length - self.highest**2) / others
        return _moments(np.maximum(mean, 0.0), np.maximum(square - mean**2, 0.0), self.length - 1, self.sizes)


def _moments(mean: Floats, variance: Floats, population: Ints, sizes: Ints) -> tuple[Floats, Floats]:
    m, n = sizes.astype(np.float64), population.astype(np.float64)[:, None]
    some = (m > 0) & (n >= m)
    factor = np.where(n > 1, (n - m) / np.maximum(n - 1, 1), 0.0) / np.maximum(m, 1)
    return np.where(some, mean[:, None], np.nan), np.where(some, variance[:, None] * factor, np.nan)


def score_pairs(
    activations: Sparse,
    row_starts: Ints,
    coordinates: Floats,
    how: Neighbourhoods,
    threshold: float,
    permutations: Sequence[Sequence[Ints]] = (),
) -> Pairs:
    """Score all pairs of some consecutive sequences, by latent, then by sequence.

    Args:
        activations: [R, n] CSR, normalised; only stored values above 0 matter.
        row_starts: [num_rows + 1] first residue of each sequence.
        coordinates: [R, 3] Å; NaN where unknown.
        how: Neighbourhoods.
        threshold: A pair needs an activation above it.
        permutations: Per sequence, permutations of its residues: entry i is where the activation of residue i goes.

    Raises:
        DataError: An activation is not a finite number.
    """
    if not np.isfinite(activations.data).all():
        raise DataError("an activation is not a finite number", fix="train the SAE again, or check the store")
    columns = activations.tocsc()  # by latent, then by residue: the entries of a pair lie side by side
    columns.sort_indices()
    entries = np.flatnonzero(columns.data > 0)
    where = columns.indices[entries].astype(np.int64)
    latent = np.repeat(np.arange(activations.shape[1]), np.diff(columns.indptr))[entries]
    owner = np.repeat(np.arange(len(row_starts) - 1), np.diff(row_starts))[where]
    value = columns.data[entries]
    if not len(value):
        return _nothing(how)
    starts = np.ones(len(value), dtype=bool)
    starts[1:] = (latent[1:] != latent[:-1]) | (owner[1:] != owner[:-1])
    first = np.flatnonzero(starts)
    highest = np.maximum.reduceat(value, first)
    counts = np.diff(first, append=len(value))
    kept = highest > threshold
    if not kept.any():
        return _nothing(how)
    inside = np.repeat(kept, counts)
    row, latent, highest, counts = owner[first[kept]], latent[first[kept]], highest[kept], counts[kept]
    where, value = where[inside], value[inside]
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
    # The first entry that equals the largest of its pair.
    equal = np.flatnonzero(value == np.repeat(highest, counts))
    anchors = where[equal[np.searchsorted(equal, begin)]]
    value = value.astype(np.float64)
    length = np.diff(row_starts)[row]
    mean = np.add.reduceat(value, begin) / length
    square = np.add.reduceat(value * value, begin) / length
    cube = np.add.reduceat(value**3, begin) / length
    places = np.ascontiguousarray(coordinates.T)
    sizes = _sizes(anchors, row_starts, places, how)
    center = np.repeat(anchors, counts)
    observed = _scores(begin, where, center, value, places, how, sizes)
    permuted = np.full(observed.shape, np.nan)
    if len(permutations):
        moved = [
            np.concatenate([row_starts[number] + each[draw] for number, each in enumerate(permutations)])
            for draw in range(len(permutations[0]))
        ]
        total = sum(_scores(begin, each[where], center, value, places, how, sizes) for each in moved)
        permuted = np.asarray(total / len(moved))
    return Pairs(
        row=row,
        latent=latent,
        anchor=anchors - row_starts[row],
        highest=highest.astype(np.float64),
        length=length,
        mean=mean,
        variance=np.maximum(square - mean**2, 0.0),
        third=cube - 3 * mean * square + 2 * mean**3,
        sizes=sizes,
        observed=observed,
        permuted=permuted,
    )


def _nothing(how: Neighbourhoods) -> Pairs:
    whole, real = np.zeros(0, dtype=np.int64), np.zeros(0)
    wide = np.zeros((0, len(how.names)))
    return Pairs(whole, whole, whole, real, whole, real, real, real, wide.astype(np.int64), wide, wide)


def _squares(places: Floats, one: Ints, other: Ints) -> Floats:
    """Squared distances of residues; NaN where a place is unknown, which no radius holds."""
    x, y, z = (axis[one] - axis[other] for axis in places)
    return np.asarray(x * x + y * y + z * z)


def _scores(
    begin: Ints, where: Ints, center: Ints, value: Floats, places: Floats, how: Neighbourhoods, sizes: Ints
) -> Floats:
    """[P, S] mean of the values that lie in each neighbourhood of their pair's anchor; pairs start at `begin`."""
    distance = np.abs(where - center)
    others = np.where(distance > 0, value, 0.0)
    sums = np.empty(sizes.shape)
    sums[:, 0] = np.add.reduceat(np.where(distance <= how.window, others, 0.0), begin)
    if not how.structure:
        return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)
    near = np.where(_squares(places, where, center) <= how.radius**2, others, 0.0)
    sums[:, 1] = np.add.reduceat(near, begin)
    for column, separation in enumerate(how.separations, start=2):
        sums[:, column] = np.add.reduceat(np.where(distance > separation, near, 0.0), begin)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)


def _sizes(anchors: Ints, row_starts: Ints, places: Floats, how: Neighbourhoods) -> Ints:
    """[P, S] number of neighbours of each anchor."""
    different, back = np.unique(anchors, return_inverse=True)
    rows = np.searchsorted(row_starts, different, side="right") - 1
    first, last = row_starts[rows], row_starts[rows + 1] - 1
    sizes = np.zeros((len(different), len(how.names)), dtype=np.int64)
    sizes[:, 0] = np.minimum(how.window, different - first) + np.minimum(how.window, last - different)
    if not how.structure:
        return sizes[back]
    for number in np.unique(rows):
        of = np.flatnonzero(rows == number)
        members = np.arange(row_starts[number], row_starts[number + 1])
        near = _squares(places, different[of][:, None], members[None]) <= how.radius**2
        sizes[of, 1] = near.sum(axis=1) - near[np.arange(len(of)), different[of] - members[0]]
        for column, separation in enumerate(how.separations, start=2):
            beside = different[of][:, None] + np.arange(-separation, separation + 1)
            known = (beside >= members[0]) & (beside <= members[-1])
            close = near[np.arange(len(of))[:, None], np.clip(beside, members[0], members[-1]) - members[0]]
            sizes[of, column] = near.sum(axis=1) - (close & known).sum(axis=1)
    return sizes[back]
