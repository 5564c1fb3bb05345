from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.proteins.lengths import clip, stretches
from plmsae.proteins.records import Feature


@pytest.mark.parametrize("policy", ["drop", "crop", "window"])
def test_what_fits_is_left_alone(policy: Literal["drop", "crop", "window"]) -> None:
    assert stretches(10, policy=policy, max_residues=10, overlap=3) == [(0, 10)]


def test_policies_by_hand() -> None:
    assert stretches(25, policy="drop", max_residues=10) == []
    assert stretches(25, policy="crop", max_residues=10) == [(0, 10)]
    assert stretches(25, policy="window", max_residues=10) == [(0, 8), (8, 16), (16, 25)]
    assert stretches(11, policy="window", max_residues=10, overlap=4) == [(0, 7), (3, 11)]


@given(st.integers(1, 5000), st.integers(2, 200), st.data())
def test_windows_cover_everything_and_share_the_overlap(num: int, longest: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, longest // 2))
    windows = stretches(num, policy="window", max_residues=longest, overlap=overlap)
    assert windows[0][0] == 0
    assert windows[-1][1] == num
    lengths = [end - start for start, end in windows]
    assert max(lengths) <= longest
    assert max(lengths) - min(lengths) <= 1
    shared = {first[1] - second[0] for first, second in itertools.pairwise(windows)}
    assert shared <= {overlap}
    if len(windows) > 1:  # one window fewer could not cover the sequence
        assert longest + (len(windows) - 2) * (longest - overlap) < num


def test_features_are_cut_at_the_edges_and_pairs_kept_whole() -> None:
    features = [
        Feature("Domain", 0, 12, "left"),
        Feature("Domain", 18, 40, "right"),
        Feature("Domain", 12, 14, "inside"),
        Feature("Domain", 0, 10, "before"),
        Feature("Domain", 20, 30, "after"),
        Feature("Disulfide bond", 11, 19),
        Feature("Disulfide bond", 5, 15),
        Feature("Cross-link", 15, 25),
    ]
    assert clip(features, 10, 20) == [
        Feature("Domain", 0, 2, "left"),
        Feature("Domain", 8, 10, "right"),
        Feature("Domain", 2, 4, "inside"),
        Feature("Disulfide bond", 1, 9),
    ]
    assert clip(features, 0, 40) == features
