from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plmsae.proteins.records import STANDARD_RESIDUES
from plmsae.proteins.sequence_keys import NUM_BINS, KeyCounts, bin_of, sequence_key

KEYS = st.integers(0, 2**64 - 1)


def test_a_key_is_blake2b_of_the_residues() -> None:
    digest = hashlib.blake2b(b"MKTAYIAK", digest_size=8, key=b"7", person=b"corpus\0\0\0\0\0\0\0\0\0\0").hexdigest()
    assert sequence_key(7, "MKTAYIAK") == int(digest, 16)


@given(st.integers(0, 2**53), st.text(STANDARD_RESIDUES, min_size=1), st.text(STANDARD_RESIDUES, min_size=1))
def test_keys_differ_with_seed_and_sequence(seed: int, one: str, other: str) -> None:
    assert (sequence_key(seed, one) == sequence_key(seed, other)) == (one == other)
    assert sequence_key(seed, one) != sequence_key(seed + 1, one)


def test_keys_are_uniform() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(STANDARD_RESIDUES), size=12)) for _ in range(20_000)]
    places = np.array([sequence_key(0, word) for word in words]) / 2.0**64
    observed, _ = np.histogram(places, bins=50, range=(0, 1))
    # chi-squared with 49 degrees of freedom is above 85.4 once in 1,000 times
    assert ((observed - 400) ** 2 / 400).sum() < 85.4


@given(st.lists(KEYS, max_size=200), st.integers(1, 250), st.integers(0, NUM_BINS - 1))
def test_the_end_of_a_range_is_the_first_that_holds_enough(keys: list[int], wanted: int, first: int) -> None:
    counts = KeyCounts()
    for key in keys:
        counts.add(key)
    end = counts.end_of(first, wanted)
    there = sum(first <= bin_of(key) < end for key in keys)
    assert there == counts.num_keys(first, end)
    if there >= wanted:
        assert counts.num_keys(first, end - 1) < wanted
    else:
        assert end == NUM_BINS


@given(st.lists(KEYS, max_size=300), st.integers(1, 50), st.integers(1, 10))
def test_cuts_cover_everything_in_order(keys: list[int], size: int, most: int) -> None:
    counts = KeyCounts()
    for key in keys:
        counts.add(key)
    cuts = counts.cuts(0, NUM_BINS, size, most)
    assert cuts[-1] == NUM_BINS
    assert cuts == sorted(set(cuts))
    assert len(cuts) <= most + 1
    firsts = [0, *cuts[:-1]]
    assert sum(counts.num_keys(a, b) for a, b in zip(firsts, cuts, strict=True)) == len(keys)
