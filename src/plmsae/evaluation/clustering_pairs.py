"""How a latent's activation lies around its strongest residue, for all latents of some proteins at once.

For a protein of L residues with activations a and anchor c = argmax a (the first of equals), a neighbourhood N(c) is a
set of residues without c, and its score the mean of a over N(c):

    sequence   0 < |j - c| <= window
    structure  Cα of j within `radius` of that of c, j != c
    apart_w    structure, and |j - c| > w in sequence

Null. Permuting all L activations over the residues (the published null) makes a score the mean of m = |N(c)| values
drawn without replacement, so that its mean and variance are known without drawing:

    E = mean(a),   Var = sigma^2 / m (L - m) / (L - 1),   sigma^2 = mean(a^2) - mean(a)^2   (finite population)

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
    """

    window: int = 2
    radius: float = 6.0
    separations: tuple[int, ...] = (2, 6)

    @property
    def names(self) -> tuple[str, ...]:
        """`sequence`, `structure` and one name per separation."""
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
    """Score all pairs of some consecutive sequences.

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
    num_latents, num_rows = activations.shape[1], len(row_starts) - 1
    residues = np.repeat(np.arange(activations.shape[0]), np.diff(activations.indptr))
    owner = np.repeat(np.arange(num_rows), np.diff(row_starts))
    key = owner[residues] * num_latents + activations.indices
    above = np.flatnonzero(activations.data > threshold)
    # Of each pair the largest activation, of equal ones the first residue.
    order = above[np.lexsort((residues[above], -activations.data[above], key[above]))]
    keys, first = np.unique(key[order], return_index=True)
    anchors = residues[order[first]]
    place = np.full(num_rows * num_latents, -1, dtype=np.int32)
    place[keys] = np.arange(len(keys))
    pair = place[key]
    inside = np.flatnonzero((pair >= 0) & (activations.data > 0))
    pair, where = pair[inside].astype(np.int64), residues[inside]
    value = activations.data[inside].astype(np.float64)
    row = keys // num_latents
    length = np.diff(row_starts)[row]
    mean = np.bincount(pair, value, minlength=len(keys)) / np.maximum(length, 1)
    square = np.bincount(pair, value * value, minlength=len(keys)) / np.maximum(length, 1)
    places = np.ascontiguousarray(coordinates.T)
    sizes = _sizes(anchors, row_starts, places, how)
    center = anchors[pair]
    observed = _scores(pair, where, center, value, places, how, sizes)
    permuted = np.full(observed.shape, np.nan)
    if len(permutations):
        moved = [
            np.concatenate([row_starts[number] + each[draw] for number, each in enumerate(permutations)])
            for draw in range(len(permutations[0]))
        ]
        total = sum(_scores(pair, each[where], center, value, places, how, sizes) for each in moved)
        permuted = np.asarray(total / len(moved))
    return Pairs(
        row=row,
        latent=keys % num_latents,
        anchor=anchors - row_starts[row],
        highest=activations.data[order[first]].astype(np.float64),
        length=length,
        mean=mean,
        variance=np.maximum(square - mean**2, 0.0),
        sizes=sizes,
        observed=observed,
        permuted=permuted,
    )


def _squares(places: Floats, one: Ints, other: Ints) -> Floats:
    """Squared distances of residues; NaN where a place is unknown, which no radius holds."""
    x, y, z = (axis[one] - axis[other] for axis in places)
    return np.asarray(x * x + y * y + z * z)


def _scores(
    pair: Ints, where: Ints, center: Ints, value: Floats, places: Floats, how: Neighbourhoods, sizes: Ints
) -> Floats:
    """[P, S] mean of the values that lie in each neighbourhood of their pair's anchor."""
    distance = np.abs(where - center)
    near = (_squares(places, where, center) <= how.radius**2) & (distance > 0)
    sets = [(distance > 0) & (distance <= how.window), near, *(near & (distance > each) for each in how.separations)]
    sums = np.stack([np.bincount(pair[each], value[each], minlength=len(sizes)) for each in sets], axis=1)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)


def _sizes(anchors: Ints, row_starts: Ints, places: Floats, how: Neighbourhoods) -> Ints:
    """[P, S] number of neighbours of each anchor."""
    different, back = np.unique(anchors, return_inverse=True)
    rows = np.searchsorted(row_starts, different, side="right") - 1
    first, last = row_starts[rows], row_starts[rows + 1] - 1
    sizes = np.zeros((len(different), len(how.names)), dtype=np.int64)
    sizes[:, 0] = np.minimum(how.window, different - first) + np.minimum(how.window, last - different)
    for number in np.unique(rows):
        of = np.flatnonzero(rows == number)
        members = np.arange(row_starts[number], row_starts[number + 1])
        one, other = different[of][:, None], members[None]
        distance = np.abs(one - other)
        near = (_squares(places, one, other) <= how.radius**2) & (distance > 0)
        sizes[of, 1] = near.sum(axis=1)
        for column, separation in enumerate(how.separations, start=2):
            sizes[of, column] = (near & (distance > separation)).sum(axis=1)
    return sizes[back]
