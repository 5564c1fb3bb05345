"""Grids: which members they have, what the members are called, and what is refused in words."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.errors import UserError
from plmsae.params import canonical_json
from plmsae.training.grid import VARIABLE, expand, takes, varied
from plmsae.training.parameters import OPTIONS, TrainSaeParams

BASE = TrainSaeParams(tokens=1000, seed=7)  # type: ignore[call-arg]


def test_members_are_the_product_with_the_last_parameter_fastest() -> None:
    members = expand(BASE, {"k": [16, 32], "seed": [0, 1]})
    assert list(members) == ["k16-seed0", "k16-seed1", "k32-seed0", "k32-seed1"]
    assert [(member.k, member.seed) for member in members.values()] == [(16, 0), (16, 1), (32, 0), (32, 1)]
    for member in members.values():
        # The order of the rows stays that of the base, so that each is what training it alone with this order gives.
        assert (member.order_seed, member.tokens) == (7, 1000)
    assert expand(BASE, {"k": [16]})["k16"].order_seed is None
    given_order = BASE.model_copy(update={"order_seed": 3})
    assert expand(given_order, {"seed": [1]})["seed1"].order_seed == 3


def test_a_parameter_is_left_out_where_the_architecture_does_not_take_it() -> None:
    grid = {"architecture": ["topk", "relu", "l1_april"], "k": [16, 32], "penalty": [0.1], "center": ["mean", "zero"]}
    members = expand(BASE, grid)
    assert list(members) == [
        *(f"topk-k{k}-center{center}" for k in (16, 32) for center in ("mean", "zero")),
        "relu-penalty0.1-centermean",
        "relu-penalty0.1-centerzero",
        "l1_april-penalty0.1",
    ]
    assert members["topk-k16-centermean"].penalty is None
    assert members["l1_april-penalty0.1"].center is None
    assert varied(grid, members["l1_april-penalty0.1"]) == {
        "architecture": "l1_april",
        "k": None,
        "penalty": 0.1,
        "center": None,
    }


def test_what_the_base_sets_for_one_architecture_does_not_stop_another() -> None:
    base = TrainSaeParams(architecture="topk", aux_k=64, anneal_fraction=0.1)  # type: ignore[call-arg]
    members = expand(base, {"architecture": ["topk", "gated"]})
    assert (members["topk"].aux_k, members["topk"].anneal_fraction) == (64, 0.1)
    assert (members["gated"].aux_k, members["gated"].anneal_fraction) == (None, None)


def test_a_grid_over_the_size_puts_the_other_way_to_give_it_out_of_effect() -> None:
    members = expand(BASE, {"dictionary_size": [512, 1024]})
    assert [(m.dictionary_size, m.expansion_factor) for m in members.values()] == [(512, None), (1024, None)]
    with pytest.raises(UserError, match="cannot both vary"):
        expand(BASE, {"dictionary_size": [512], "expansion_factor": [4]})


@pytest.mark.parametrize(
    ("grid", "message", "fix"),
    [
        ({}, "the grid is empty", "k: \\[16"),
        ({"lernrate": [1]}, "unknown parameter 'lernrate'", "did you mean 'learning_rate'"),
        ({"batch_size": [1, 2]}, "'batch_size' cannot vary", "sweep.train_sae.batch_size"),
        ({"order_seed": [1, 2]}, "'order_seed' cannot vary", "sweep.train_sae.order_seed"),
        ({"k": []}, "'k' has no values", "leave"),
        ({"k": [16, 32, 16]}, "'k' has the value 16 twice", "keep one"),
        ({"learning_rate": [1e-3, 0.001]}, "has the value 0.001 twice", "keep one"),
        ({"clip_norm": [1, 1.0]}, "members 'clip_norm1' and 'clip_norm1-.*' are the same", "keep one"),
        ({"k": [16, 0]}, "member 'k0' is not valid: parameter 'train_sae.k' = 0", "correct"),
        ({"k": ["16"]}, "member 'k16' is not valid", "correct"),
        ({"k": [float("nan")]}, "'k' has the value nan", "number"),
        ({"architecture": ["topk", "topkk"]}, "member 'topkk' is not valid: .*did you mean 'topk'", "correct"),
        ({"preset": ["interplm"], "architecture": ["gated"]}, "member 'interplm-gated' is not valid", "."),
        ({"penalty": [0.1]}, "no architecture of the grid takes 'penalty'", "relu"),
        ({"architecture": ["relu"], "k": [3]}, "no architecture of the grid takes 'k'", "topk"),
        ({"architecture": ["jump_relu"], "l0_control": ["quadratic"]}, "member 'jump_relu-l0_controlquad", "."),
    ],
)
def test_what_is_refused(grid: dict[str, list[Any]], message: str, fix: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        expand(BASE, grid)
    assert caught.value.where is not None
    assert "sweep.grid" in caught.value.where
    assert re.search(fix, caught.value.fix or "")


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "architecture": st.sampled_from(["topk", "batch_topk", "matryoshka", "relu", "l1_april", "jump_relu", "gated"]),
    "k": st.integers(1, 400),
    "expansion_factor": st.integers(1, 64),
    "learning_rate": st.floats(1e-9, 0.5) | st.none(),
    "penalty": st.floats(0, 1e6, allow_subnormal=False) | st.none(),
    "resample_steps": st.lists(st.integers(1, 10**6), max_size=30, unique=True).map(sorted) | st.none(),
    "group_fractions": st.sampled_from(["power_law", "steering", [0.25, 0.75], [0.1] * 10, None]),
    "seed": st.integers(0, 2**53 - 1),
}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    return {name: draw(st.lists(VALUES[name], min_size=1, max_size=3, unique_by=repr)) for name in names}


@given(grids())
def test_members_are_complete_distinct_and_safely_named(grid: dict[str, list[Any]]) -> None:
    architectures = grid.get("architecture", ["topk"])
    if any(not any(takes(item, name) for item in architectures) for name in grid):
        with pytest.raises(UserError, match="no architecture"):
            expand(BASE, grid)
        return
    members = expand(BASE, grid)
    wanted = {
        canonical_json({name: value for name, value in zip(grid, values, strict=True) if takes(architecture, name)})
        for values in itertools.product(*grid.values())
        for architecture in [dict(zip(grid, values, strict=True)).get("architecture", "topk")]
    }
    assert len(members) == len(wanted)
    assert len({canonical_json(member) for member in members.values()}) == len(members)
    assert len({name.lower() for name in members}) == len(members), "a file system may not tell case apart"
    for name, member in members.items():
        assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,79}", name)
        assert TrainSaeParams.model_validate(member.model_dump()) == member
        for parameter, value in varied(grid, member).items():
            assert value is None or value in grid[parameter]
    assert expand(BASE, grid) == members


def test_what_may_vary_and_what_belongs_to_architectures_are_parameters() -> None:
    assert set(OPTIONS) <= set(VARIABLE) <= set(TrainSaeParams.model_fields)
    shared = {"tokens", "batch_size", "layer", "hook", "order_seed", "sequences", "validate_every", "device", "threads"}
    assert not shared & set(VARIABLE)
