"""Scores and nulls of clustering: by hand, against brute force over all permutations, and against a plain loop."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from plmsae.errors import DataError
from plmsae.evaluation.clustering_pairs import Neighbourhoods, Pairs, score_pairs

HOW = Neighbourhoods(window=2, radius=6.0, separations=(2, 6))


def one(activations: list[float], coordinates: np.ndarray | None = None, threshold: float = 0.6) -> Pairs:
    """One sequence, one latent; by default residues are 10 Å apart on a line."""
    length = len(activations)
    places = np.arange(length)[:, None] * np.array([10.0, 0, 0]) if coordinates is None else coordinates
    column = sparse.csr_matrix(np.array(activations, dtype=np.float32)[:, None])
    return score_pairs(column, np.array([0, length]), places, HOW, threshold)


def test_by_hand() -> None:
    """Anchor at 3; residue 9 is folded back onto it, exactly 6 Å away, and so are 1 and 5."""
    places = np.arange(10)[:, None] * np.array([100.0, 0, 0])
    places[9] = places[3] + [0, 6, 0]
    places[1] = places[3] + [0, 0, 6]
    places[5] = places[3] - [0, 4, 0]
    places[6] = places[3] - [0, 0, 6.001]
    pairs = one([0, 0.5, 0.2, 1.0, 0, 0.25, 0.125, 0, 0, 0.75], places)
    assert (pairs.row.tolist(), pairs.latent.tolist(), pairs.anchor.tolist()) == ([0], [0], [3])
    assert pairs.sizes.tolist() == [[4, 3, 1, 0]]
    np.testing.assert_allclose(pairs.observed[0, :3], [(0.5 + 0.2 + 0 + 0.25) / 4, 0.5, 0.75], rtol=1e-7)
    assert np.isnan(pairs.observed[0, 3])
    assert pairs.mean[0] == pytest.approx(2.825 / 10)
    assert np.isnan(pairs.permuted).all()


def test_edges() -> None:
    assert len(one([0.6, 0.1])) == 0, "the threshold itself is not above it"
    assert one([0.9, 0.9, 0.1]).anchor.tolist() == [0], "the first of equal maxima"
    assert one([0.9, 0.0]).sizes[0, 0] == 1
    assert one([0.0, 0.9, 0.0, 0.0, 0.0]).sizes[0, 0] == 3
    lonely = one([0.9])
    assert lonely.sizes.tolist() == [[0, 0, 0, 0]]
    assert np.isnan(lonely.observed).all()
    assert np.isnan(lonely.exact_null()[0]).all()
    unknown = np.full((3, 3), np.nan)
    assert one([0.1, 0.9, 0.1], unknown).sizes.tolist() == [[2, 0, 0, 0]], "no coordinates, no structure"
    with pytest.raises(DataError, match="not a finite number"):
        one([0.1, float("nan")])


@pytest.mark.parametrize(("length", "window"), [(4, 1), (6, 2), (7, 2), (8, 1)])
def test_nulls_are_those_of_all_permutations(length: int, window: int) -> None:
    values = np.round(np.random.default_rng(length).random(length) ** 3, 2)
    values[1] = 1.0
    how = Neighbourhoods(window=window, radius=6.0)
    column = sparse.csr_matrix(values.astype(np.float32)[:, None])
    pairs = score_pairs(column, np.array([0, length]), np.full((length, 3), np.nan), how, 0.6)
    neighbours = [j for j in range(length) if 0 < abs(j - 1) <= window]
    exact = [np.mean([each[j] for j in neighbours]) for each in itertools.permutations(values)]
    mean, variance = pairs.exact_null()
    np.testing.assert_allclose([mean[0, 0], variance[0, 0]], [np.mean(exact), np.var(exact)], rtol=1e-6)
    third = np.mean((np.array(exact) - np.mean(exact)) ** 3)
    np.testing.assert_allclose(pairs.exact_third()[0, 0], third, rtol=1e-5, atol=1e-12)
    others = [values[j] for j in range(length) if j != 1]
    held = []
    for each in itertools.permutations(others):
        whole = [*each[:1], values[1], *each[1:]]
        held.append(np.mean([whole[j] for j in neighbours]))
    mean, variance = pairs.held_out_null()
    np.testing.assert_allclose([mean[0, 0], variance[0, 0]], [np.mean(held), np.var(held)], rtol=1e-6)


def _chain(rng: np.random.Generator, length: int) -> np.ndarray:
    """A compact random walk of 3.8 Å steps."""
    steps = rng.normal(size=(length, 3))
    steps *= 3.8 / np.linalg.norm(steps, axis=1, keepdims=True)
    return np.cumsum(steps, axis=0) * 0.7


def _loop(values: np.ndarray, xyz: np.ndarray) -> tuple[int, list[float]]:
    """The published scores and the variants, as one would write them down."""
    anchor = int(values.argmax())
    index = np.arange(len(values))
    far = np.sqrt(((xyz - xyz[anchor]) ** 2).sum(1))
    apart = abs(index - anchor)
    sets = [(apart <= 2), far <= 6, (far <= 6) & (apart > 2), (far <= 6) & (apart > 6)]
    return anchor, [
        float(values[each & (apart > 0)].mean()) if (each & (apart > 0)).any() else math.nan for each in sets
    ]


def test_agrees_with_a_plain_loop_on_many_pairs() -> None:
    rng = np.random.default_rng(0)
    lengths = [40, 1, 90, 63]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    dense = rng.random((starts[-1], 30), dtype=np.float32) * (rng.random((starts[-1], 30)) < 0.15)
    xyz = np.concatenate([_chain(rng, length) for length in lengths])
    pairs = score_pairs(sparse.csr_matrix(dense), starts, xyz, HOW, 0.6)
    expected = {
        (row, latent)
        for row in range(4)
        for latent in range(30)
        if dense[starts[row] : starts[row + 1], latent].max() > 0.6
    }
    assert set(zip(pairs.row.tolist(), pairs.latent.tolist(), strict=True)) == expected
    assert len(pairs) == len(expected) > 60
    for place in range(len(pairs)):
        row = pairs.row[place]
        values = dense[starts[row] : starts[row + 1], pairs.latent[place]].astype(np.float64)
        anchor, scores = _loop(values, xyz[starts[row] : starts[row + 1]])
        assert anchor == pairs.anchor[place]
        np.testing.assert_allclose(pairs.observed[place], scores, rtol=1e-9, atol=1e-12)
        assert pairs.mean[place] == pytest.approx(values.mean())
        assert pairs.variance[place] == pytest.approx(values.var())


def test_drawn_permutations_average_to_the_exact_null() -> None:
    """2,000 permutations of each sequence: the averages lie about the mean as their exact variance says."""
    rng = np.random.default_rng(1)
    length, draws = 50, 2000
    dense = rng.random((length, 60), dtype=np.float32) * (rng.random((length, 60)) < 0.3)
    xyz = _chain(rng, length)
    permutations = [rng.permutation(length) for _ in range(draws)]
    pairs = score_pairs(sparse.csr_matrix(dense), np.array([0, length]), xyz, HOW, 0.6, [permutations])
    mean, variance = pairs.exact_null()
    z = ((pairs.permuted - mean) / np.sqrt(variance / draws))[pairs.sizes > 0]
    assert len(z) > 150
    assert np.abs(z).max() < 4.5
    assert 0.8 < z.std() < 1.2
    first = score_pairs(sparse.csr_matrix(dense), np.array([0, length]), xyz, HOW, 0.6, [permutations[:1]])
    latent, column = pairs.latent[5], 1
    moved = np.zeros(length)
    moved[permutations[0]] = dense[:, latent]
    anchor = pairs.anchor[5]
    near = (np.linalg.norm(xyz - xyz[anchor], axis=1) <= 6) & (np.arange(length) != anchor)
    assert first.permuted[5, column] == pytest.approx(moved[near].mean())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_batch_is_its_sequences(seed: int, num_rows: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    dense = rng.random((starts[-1], 6), dtype=np.float32) * (rng.random((starts[-1], 6)) < 0.4)
    xyz = rng.normal(size=(starts[-1], 3)) * 6
    whole = score_pairs(sparse.csr_matrix(dense), starts, xyz, HOW, 0.6)
    pieces = []
    for row in range(num_rows):
        inside = slice(starts[row], starts[row + 1])
        alone = score_pairs(sparse.csr_matrix(dense[inside]), np.array([0, lengths[row]]), xyz[inside], HOW, 0.6)
        alone.row[:] = row
        pieces.append(alone)
    joined = Pairs.concatenate(pieces)
    joined = joined.take(np.lexsort((joined.row, joined.latent)))
    for name in ("row", "latent", "anchor", "sizes", "observed", "mean", "variance", "third", "highest"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(joined, name))
