"""One unit made by hand for each class, every statistic by hand, and a slow implementation of the same rules."""

from itertools import pairwise
from statistics import median

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation import top_sequences
from plmsae.evaluation.activation_patterns import NUM_SEQUENCES, pattern_table
from plmsae.evaluation.top_sequences import Runs, TopSequences

LENGTH, NUM = 400, 6


def table(*units: NDArray[np.float64], scales: NDArray[np.float64] | None = None, batch: int = 4) -> pd.DataFrame:
    """The table of units, each [num_sequences, length]."""
    x = np.stack(units, axis=-1)
    num_sequences, length, num_units = x.shape
    top = TopSequences(num_units, NUM_SEQUENCES)
    for first in range(0, num_sequences, batch):
        part = x[first : first + batch]
        starts = np.arange(len(part) + 1) * length
        top.add(sparse.csr_matrix(part.reshape(-1, num_units)), starts, np.arange(first, first + len(part)))
    return pattern_table(top.result(), top.highest, np.full(num_sequences, length), scales)


def spans(*places: tuple[int, int], height: float = 1.0, num: int = NUM) -> NDArray[np.float64]:
    """The same stretches (start, length) in every sequence."""
    x = np.zeros((NUM, LENGTH))
    for start, length in places:
        x[:num, start : start + length] = height
    return x


def test_one_unit_of_each_class() -> None:
    every_seventh = spans(*((start, 3) for start in range(0, LENGTH - 7, 7)))
    found = table(
        spans(),
        spans((10, 5), num=4),
        every_seventh,
        spans((10, 1), (200, 1)),
        spans((10, 19)),
        spans((10, 20)),
        spans((10, 49)),
        spans((10, 50)),
        spans((10, 299)),
        spans((10, 300)),
        spans((0, 321)),
        spans((0, 320)),
    )
    assert found["pattern"].tolist() == [
        "dead",
        "rare",
        "periodic",
        "point",
        "short motif",
        "medium motif",
        "medium motif",
        "long motif",
        "long motif",
        "other",  # 300 of 400: too long for a motif, not the whole
        "whole",
        "other",  # exactly 0.8 is neither
    ]
    assert found["latent"].tolist() == list(range(12))


def test_what_makes_a_unit_periodic() -> None:
    every_seventh = spans(*((start, 3) for start in range(0, 77, 7)))  # 11 contigs
    ten_contigs = spans(*((start, 3) for start in range(0, 70, 7)))
    long_contigs = spans(*((start, 10) for start in range(0, 220, 20)))
    irregular = spans(*((start, 3) for start in np.cumsum(np.arange(4, 18)).tolist()))
    two_periods = spans(*((start, 2) for start in np.cumsum([3, 4] * 10).tolist()))
    found = table(every_seventh, ten_contigs, long_contigs, irregular, two_periods)
    assert found["pattern"].tolist() == ["periodic", *["short motif"] * 3, "periodic"]
    assert found["period"][:3].tolist() == [7, 7, 20]
    assert found["share_period"].round(3).tolist()[:4] == [1, 1, 1, round(1 / 13, 3)]
    assert found["share_two_periods"][3] == pytest.approx(2 / 13)
    assert found["share_two_periods"][4] == 1.0


def test_every_statistic_by_hand() -> None:
    x = np.zeros((7, 20))
    x[0, [1, 2, 3, 8, 12]] = [0.5, 1.0, 0.9, 0.8, 0.1]  # contigs of 3 (top), 1 (high), 1
    x[1, [0, 1, 5]] = [0.76, 0.2, 0.7]  # contigs of 2 (top), 1
    x[2, 4:9] = 0.9
    x[3, 10] = 0.95
    x[4, 10:14] = 0.8
    x[5, 3:19] = 0.75  # not above 0.75: does not count
    found = table(x).iloc[0]
    assert found["num_sequences"] == 5
    assert found["mean_share_active"] == pytest.approx(np.mean([5, 3, 5, 1, 4]) / 20)
    assert found["median_contigs"] == median([3, 2, 1, 1, 1])
    assert found["median_top_contig"] == median([3, 2, 5, 1, 4])
    assert found["median_high_contig"] == median([3, 1, 2, 5, 1, 4])
    # Distances of starts: 7 and 4 in the first sequence, 5 in the second; the shortest of equals is the period.
    assert found["period"] == 4
    assert (found["share_period"], found["share_two_periods"]) == pytest.approx((1 / 3, 2 / 3))
    assert found["pattern"] == "short motif"


def test_only_the_twelve_strongest_sequences_count() -> None:
    x = np.zeros((20, 40))
    x[:8, 5:35] = np.linspace(0.76, 0.8, 8)[:, None]  # weaker, and 30 long
    x[8:, 5] = 1.0
    found = table(x, batch=3).iloc[0]
    assert (found["num_sequences"], found["median_top_contig"], found["pattern"]) == (12, 1, "point")


def test_rounding_is_a_variant_that_depends_on_the_scale() -> None:
    x = spans((10, 30), height=0.04) + spans((20, 1))
    plain = table(x)
    fine, coarse = table(x, scales=np.array([10.0])), table(x, scales=np.array([1.0]))
    assert (plain["pattern"][0], fine["pattern"][0]) == ("medium motif", "medium motif")
    assert coarse["pattern"][0] == "point", "0.04 is rounded to nothing"


def slow(x: NDArray[np.float64]) -> dict[str, float]:
    """The same statistics for one unit [num_sequences, length], sequence by sequence."""
    highest = x.max()
    order = sorted(range(len(x)), key=lambda row: (-x[row].max(), row))
    chosen = [x[row] / highest for row in order if x[row].max() > 0.75 * highest][:12]
    numbers, tops, high, distances = [], [], [], []
    for row in chosen:
        stretches, start = [], None
        for place, value in enumerate([*row.tolist(), 0.0]):
            if value > 0 and start is None:
                start = place
            elif value == 0 and start is not None:
                stretches.append((start, place))
                start = None
        peaks = [max(row[a:b]) for a, b in stretches]
        best = stretches[peaks.index(max(peaks))]
        numbers.append(len(stretches))
        tops.append(best[1] - best[0])
        high += [b - a for (a, b), peak in zip(stretches, peaks) if peak > 0.75]
        distances += [b[0] - a[0] for a, b in pairwise(stretches)]
    counts = sorted((distances.count(value) for value in set(distances)), reverse=True)
    return {
        "num_sequences": len(chosen),
        "mean_share_active": float(np.mean([(row > 0).mean() for row in chosen])),
        "median_contigs": median(numbers),
        "median_top_contig": median(tops),
        "median_high_contig": median(high),
        "share_period": counts[0] / len(distances) if counts else 0,
        "share_two_periods": sum(counts[:2]) / len(distances) if counts else 0,
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.integers(1, 7))
def test_statistics_are_those_of_the_slow_way(seed: int, density: float, batch: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 64, (16, 30, 3)) / 64 * (rng.random((16, 30, 3)) < density)
    x[0] += 0.5  # no unit is dead
    found = table(*np.moveaxis(x, -1, 0), batch=batch)
    for unit in range(3):
        for name, value in slow(x[..., unit]).items():
            assert found[name][unit] == pytest.approx(value, rel=1e-6), name


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_best_runs_do_not_depend_on_batches_or_merges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (30, 12, 5)) * (rng.random((30, 12, 5)) < 0.4) / 4.0
    found: list[Runs] = []
    for batch, limit in ((1, 1), (7, 40), (30, 10**6)):
        top = TopSequences(5, 4)
        top._limit = limit
        order = rng.permutation(30) if batch == 1 else np.arange(30)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(top_sequences, "_PENDING_ENTRIES", limit)
            for first in range(0, 30, batch):
                rows = order[first : first + batch]
                flat = sparse.csr_matrix(x[rows].reshape(-1, 5))
                top.add(flat, np.arange(len(rows) + 1) * 12, rows)
        np.testing.assert_array_equal(top.active_sequences, (x.max(axis=1) > 0).sum(axis=0))
        np.testing.assert_array_equal(top.active_residues, (x > 0).sum(axis=(0, 1)))
        found.append(top.result())
    for other in found[1:]:
        for name in ("units", "sequences", "highest", "pointers", "positions", "values"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(other, name))


def test_nothing_at_all() -> None:
    found = table(np.zeros((3, 5)), np.zeros((3, 5)))
    assert found["pattern"].tolist() == ["dead", "dead"]
    assert TopSequences(2, 3).result().units.tolist() == []
