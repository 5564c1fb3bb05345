"""Matching of latents against numpy and scipy, and dictionaries whose matches are known."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from plmsae.errors import DataError
from plmsae.evaluation.matching import (
    NO_PARTNER,
    Correlation,
    PairSums,
    best_match,
    decoder_cosines,
    one_to_one,
    share_above,
)


def _codes(rng: np.random.Generator, rows: int, latents: int, density: float = 0.3) -> np.ndarray:
    return (rng.random((rows, latents)) * (rng.random((rows, latents)) < density)).astype(np.float32)


def test_cosines() -> None:
    ours = np.array([[3, 4], [0, 0], [0, 2]], dtype=np.float32)
    theirs = np.array([[1, 0], [6, 8]], dtype=np.float32)
    np.testing.assert_allclose(decoder_cosines(ours, theirs), [[0.6, 1.0], [0, 0], [0, 0.8]], atol=1e-7)
    with pytest.raises(DataError, match="widths 2 and 3"):
        decoder_cosines(ours, np.zeros((1, 3), dtype=np.float32))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_correlation_in_batches_is_that_of_numpy(seed: int, num_batches: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = _codes(rng, 60, 7), _codes(rng, 60, 5)
    ours[:, 2] = 0
    found = Correlation(7, 5)
    for part in np.array_split(np.arange(60), num_batches):
        found.add(sparse.csr_matrix(ours[part]), sparse.csr_matrix(theirs[part]))
    live = [0, 1, 3, 4, 5, 6]
    expected = np.array([[np.corrcoef(ours[:, i], theirs[:, j])[0, 1] for j in range(5)] for i in live])
    r = found.result()
    np.testing.assert_allclose(r[live], expected, atol=1e-6)
    assert (r[2] == 0).all()
    np.testing.assert_allclose(found.rates()[0], (ours > 0).mean(axis=0))
    np.testing.assert_allclose(found.rates()[1], (theirs > 0).mean(axis=0))


def test_assignment_is_the_best_of_all() -> None:
    """Where two latents want one partner, the assignment gives up one of them; brute force over all agrees."""
    similarity = np.array([[0.9, 0.8, 0.0], [0.85, 0.1, 0.0], [0.2, 0.3, 0.1]], dtype=np.float32)
    assert best_match(similarity).tolist() == [0, 0, 1]
    assert one_to_one(similarity).tolist() == [1, 0, 2]
    rng = np.random.default_rng(0)
    square = rng.random((6, 6)).astype(np.float32)
    best = max(itertools.permutations(range(6)), key=lambda each: sum(square[i, j] for i, j in enumerate(each)))
    assert one_to_one(square).tolist() == list(best)
    assert sorted(one_to_one(similarity[:, :2]).tolist()) == [NO_PARTNER, 0, 1]
    assert share_above(np.array([0.9, 0.7, 0.1]), np.array([True, True, False]), 0.7) == 1.0
    assert share_above(np.array([0.9]), np.array([False]), 0.7) == 0.0


def test_sums_of_pairs_give_the_same_correlation_and_an_interval() -> None:
    rng = np.random.default_rng(2)
    theirs = _codes(rng, 400, 8)
    order = np.array([3, 1, 0, 2, 6, 7, 5, 4])
    noise = np.array([0, 0, 0, 0, 3.0, 3.0, 3.0, 3.0], dtype=np.float32)
    ours = theirs[:, order] + noise * _codes(rng, 400, 8)
    owners = np.repeat(np.arange(20), 20)
    pairs = (np.arange(8), order)
    whole = PairSums.of(sparse.csr_matrix(ours), sparse.csr_matrix(theirs), pairs, owners, 20)
    left = PairSums.of(sparse.csr_matrix(ours[:150]), sparse.csr_matrix(theirs[:150]), pairs, owners[:150], 20)
    right = PairSums.of(sparse.csr_matrix(ours[150:]), sparse.csr_matrix(theirs[150:]), pairs, owners[150:], 20)
    expected = [np.corrcoef(ours[:, i], theirs[:, order[i]])[0, 1] for i in range(8)]
    np.testing.assert_allclose(whole.correlations(), expected, atol=1e-6)
    both = PairSums.total([left, right])
    np.testing.assert_allclose(both.correlations(), expected, atol=1e-6)
    counted = np.ones(8, dtype=bool)
    how: dict[str, Any] = {"num_resamples": 200, "confidence": 0.95, "seed": 0}
    strict, loose = both.shares(counted, [0.99, 0.2], of_ours=True, **how)
    assert (strict.value, strict.low, strict.high) == (0.5, 0.5, 0.5)
    assert loose.value >= 0.5
    assert loose.low <= loose.value <= loose.high
    # By hand: the share in every resample, from rows drawn again.
    rng_of_weights = np.random.default_rng(0)
    weights = rng_of_weights.multinomial(20, np.full(20, 1 / 20), size=200)
    shares = []
    for row in weights:
        picked = np.repeat(np.arange(400), row[owners])
        r = [np.corrcoef(ours[picked, i], theirs[picked, order[i]])[0, 1] for i in range(8)]
        shares.append(np.mean(np.array(r) >= 0.2))
    bounds = np.percentile(shares, [2.5, 97.5]) + loose.value - np.mean(shares)
    assert (loose.low, loose.high) == pytest.approx(tuple(np.clip(bounds, 0, 1)))
    never = np.arange(8) == 0
    assert both.shares(counted, [0.99], of_ours=True, never=never, **how)[0].value == 0.375, "no partner, no match"


def test_what_never_fires_is_not_counted() -> None:
    """Of three latents one is silent on these proteins, and one fires on a single protein."""
    theirs = np.zeros((40, 3), dtype=np.float32)
    theirs[::3, 0] = 1
    theirs[2, 1] = 1
    codes = sparse.csr_matrix(theirs)
    sums = PairSums.of(codes, codes, (np.arange(3), np.arange(3)), np.repeat(np.arange(4), 10), 4)
    share = sums.shares(np.ones(3, dtype=bool), [0.9], num_resamples=100, confidence=0.9, seed=1, of_ours=False)[0]
    assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)
