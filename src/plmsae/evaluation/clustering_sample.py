"""A seeded sample of at most so many proteins per latent, kept while pairs stream by.

Every protein has a number for every latent, a hash of seed, accession and latent; the proteins with the smallest are
kept. That is a draw without replacement that does not depend on the order in which batches come. Of the windows that a
long protein was cut into, the one with the largest activation stands for it, of equal ones the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.clustering_pairs import Ints, Pairs
from plmsae.proteins.hashing import unit_hash

_PRUNE_AT = 400_000


@dataclass(frozen=True)
class Sampled:
    """The sample.

    Attributes:
        pairs: Pairs by ascending latent; `row` counts through the whole split.
        available: [n] proteins on which each latent is above the threshold.
    """

    pairs: Pairs
    available: Ints


class PairSample:
    """Collects pairs; memory is bounded by latents times proteins per latent.

    Args:
        accessions: Accession of every row of the split.
        offsets: Its offset.
        num_latents: n.
        most: Proteins kept per latent.
        seed: Seed of the draw.
    """

    def __init__(self, accessions: Sequence[str], offsets: Ints, num_latents: int, most: int, seed: int) -> None:
        names, self._protein = np.unique(np.asarray(accessions, dtype=str), return_inverse=True)
        hashes = [unit_hash(seed, "clustering", name) for name in names.tolist()]
        self._hash = (np.asarray(hashes) * 2.0**53).astype(np.uint64)
        self._offset, self._most = offsets, most
        # One bit per protein and latent: windows of one protein come in different batches and count once.
        self._seen = np.zeros((len(names), (num_latents + 7) // 8), dtype=np.uint8)
        self._num_latents = num_latents
        self._pieces: list[Pairs] = []
        self._size = 0

    def add(self, pairs: Pairs) -> None:
        """Take in the pairs of a batch, `row` counting through the split."""
        bits = (128 >> (pairs.latent % 8)).astype(np.uint8)
        np.bitwise_or.at(self._seen, (self._protein[pairs.row], pairs.latent // 8), bits)
        self._pieces.append(pairs)
        self._size += len(pairs)
        if self._size > max(_PRUNE_AT, 2 * self._num_latents * self._most):
            self._pieces = [self._pruned()]
            self._size = len(self._pieces[0])

    def result(self) -> Sampled:
        """The sample of all pairs so far."""
        available = np.zeros(self._num_latents, dtype=np.int64)
        for row in self._seen:
            available += np.unpackbits(row, count=self._num_latents)
        return Sampled(self._pruned(), available)

    def _pruned(self) -> Pairs:
        pairs = Pairs.concatenate(self._pieces)
        protein = self._protein[pairs.row]
        key = _mixed(self._hash[protein] ^ (pairs.latent.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)))
        order = np.lexsort((self._offset[pairs.row], -pairs.highest, protein, key, pairs.latent))
        latent, of = pairs.latent[order], protein[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (latent[1:] != latent[:-1]) | (of[1:] != of[:-1])
        order = order[first]
        latent = pairs.latent[order]
        starts = np.searchsorted(latent, latent, side="left")
        return pairs.take(order[np.arange(len(order)) - starts < self._most])


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): every bit of the result depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))
