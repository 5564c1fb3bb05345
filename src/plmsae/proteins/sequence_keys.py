"""A keyed hash of a sequence puts a corpus into an order that depends on nothing else; counting it takes 512 KiB.

The order is that of the seed and the residues alone: not of the file, of names, or of how the file was read. A subset
is a beginning of it, so a smaller one is inside a larger one, equal sequences are neighbours, and sets that follow each
other have no sequence in common.
"""

from __future__ import annotations

import hashlib

import numpy as np

BIN_BITS = 16
NUM_BINS = 1 << BIN_BITS


def sequence_key(seed: int, sequence: str) -> int:
    """A number below 2^64, uniform over sequences: BLAKE2b (RFC 7693) with the seed as its key."""
    digest = hashlib.blake2b(sequence.encode("ascii"), digest_size=8, key=b"%d" % seed, person=b"corpus")
    return int.from_bytes(digest.digest(), "big")


def bin_of(key: int) -> int:
    """The bin of a key: its first 16 bits."""
    return key >> (64 - BIN_BITS)


class KeyCounts:
    """How many keys there are in each of 65,536 equal ranges, which says where a wanted number of them ends.

    Args:
        counts: int64 [65536].
    """

    def __init__(self, counts: np.ndarray | None = None) -> None:
        self.counts = np.zeros(NUM_BINS, dtype=np.int64) if counts is None else counts

    def add(self, key: int) -> None:
        """Count a key."""
        self.counts[bin_of(key)] += 1

    def num_keys(self, first: int, end: int) -> int:
        """Number of keys in the bins `first` to `end - 1`."""
        return int(self.counts[first:end].sum())

    def end_of(self, first: int, wanted: int) -> int:
        """The end of the shortest range of bins from `first` that holds `wanted` keys, or of all bins if none does."""
        reached = np.searchsorted(np.cumsum(self.counts[first:]), max(wanted, 1))
        return min(first + int(reached) + 1, NUM_BINS)

    def cuts(self, first: int, end: int, size: int, most: int) -> list[int]:
        """Ends of consecutive ranges of the bins `first` to `end - 1`, of about `size` keys each and at most `most`.

        The last cut is `end`.
        """
        size = max(size, -(-self.num_keys(first, end) // most))
        found, at = [], first
        while at < end:
            at = min(self.end_of(at, size), end)
            found.append(at)
        return found
