from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from plmsae.errors import DataError
from plmsae.proteins.hashing import unit_hash
from plmsae.proteins.split import SPLITS, assign_splits, split_of

# From the digests of `b2sum -l 64`, shifted by hand.
GOLDEN = [0.07856225164430691, 0.9372854985272834]
clusterings = st.dictionaries(
    st.text("PQ0123456789", min_size=1, max_size=6), st.integers(0, 60), min_size=40, max_size=90
)


@given(clusterings, st.integers(0, 10), st.randoms())
@settings(deadline=None)
def test_no_cluster_is_in_two_splits_whatever_the_order(
    numbers: dict[str, int], seed: int, shuffler: random.Random
) -> None:
    clusters = {name: f"R{number}" for name, number in numbers.items()}
    options = {"seed": seed, "valid_fraction": 0.3, "test_fraction": 0.3}
    try:
        splits = assign_splits(clusters, **options)
    except DataError:
        assume(False)
    for representative in set(clusters.values()):
        assert len({splits[name] for name in clusters if clusters[name] == representative}) == 1
    items = list(clusters.items())
    shuffler.shuffle(items)
    assert assign_splits(dict(items), **options) == splits


def test_more_proteins_do_not_move_those_that_were_there() -> None:
    few = {f"P{index}": f"P{index}" for index in range(100)}
    many = {f"P{index}": f"P{index}" for index in range(1000)}
    options = {"seed": 3, "valid_fraction": 0.1, "test_fraction": 0.2}
    early, late = assign_splits(few, **options), assign_splits(many, **options)
    assert all(late[name] == split for name, split in early.items())


def test_fractions_are_met_within_four_standard_deviations() -> None:
    num = 20_000
    splits = list(
        assign_splits({f"P{i}": f"P{i}" for i in range(num)}, seed=0, valid_fraction=0.1, test_fraction=0.2).values()
    )
    for split, fraction in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert abs(splits.count(split) / num - fraction) < 4 * math.sqrt(fraction * (1 - fraction) / num)


def test_golden_places() -> None:
    """Fixed for ever: another hash would move the proteins of every registered SAE to other splits."""
    assert [unit_hash(0, "split", name) for name in ("P12345", "Q8THH1")] == GOLDEN
    assert unit_hash(0, "split", "P12345") != unit_hash(0, "subset", "P12345")
    assert split_of("P12345", seed=0, valid_fraction=0.0, test_fraction=GOLDEN[0]) == "train"
    assert split_of("P12345", seed=0, valid_fraction=0.0, test_fraction=math.nextafter(GOLDEN[0], 1)) == "test"


def test_an_empty_split_is_refused_with_a_seed_that_works() -> None:
    clusters = {f"P{index}": f"P{index}" for index in range(6)}
    options = {"valid_fraction": 0.2, "test_fraction": 0.2}
    bad = next(seed for seed in range(100) if fails(clusters, seed, options))
    with pytest.raises(DataError, match=r"split '\w+' is empty: 6 proteins form 6 homology clusters") as error:
        assign_splits(clusters, seed=bad, **options)
    good = int(str(error.value.fix).split("set seed to ")[1].split(",")[0])
    assert set(assign_splits(clusters, seed=good, **options).values()) == set(SPLITS)


def test_one_cluster_cannot_fill_three_splits() -> None:
    with pytest.raises(DataError, match="2 proteins form 1 homology clusters") as error:
        assign_splits({"P1": "P1", "P2": "P1"}, seed=0, valid_fraction=0.1, test_fraction=0.1)
    assert "seed" not in str(error.value.fix)


def fails(clusters: dict[str, str], seed: int, options: dict[str, float]) -> bool:
    try:
        assign_splits(clusters, seed=seed, **options)
    except DataError:
        return True
    return False
