"""Two processes with half the batch each against one with the whole: the same algorithm, over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore

from plmsae.training.launch import environment
from tests.training import ranks
from tests.training.ranks import CASES, Results

ROOT = Path(__file__).parents[2]
each = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """One process, and the first and second of two."""
    folder = tmp_path_factory.mktemp("ranks")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.rank", str(folder)],
            cwd=ROOT,
            env={**os.environ, **environment(rank, 2, rank, store.port)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    alone = ranks.alone(folder / "alone")
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors.decode()[-4000:]
    first, second = (load_file(folder / f"{rank}.safetensors") for rank in range(2))
    return alone, first, second


def differs(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """||a - b|| / ||b||, 0 where both are 0."""
    error = float((found - wanted).double().norm())
    return error / float(wanted.double().norm()) if error else 0.0


@each
def test_gradients_of_the_first_step(both: tuple[Results, Results, Results], case: str) -> None:
    alone, first, second = both
    prefix = f"{case}.1.gradient."
    names = [name for name in alone if name.startswith(prefix)]
    assert len(names) >= 4
    for name in names:
        assert alone[name].any(), name
        assert differs(first[name], alone[name]) < 1e-5, name
        assert torch.equal(first[name], second[name])
    assert torch.equal(first[f"{case}.1.tokens_since_fired"], alone[f"{case}.1.tokens_since_fired"])


@each
def test_weights_after_steps_in_fp64(both: tuple[Results, Results, Results], case: str) -> None:
    alone, first, second = both
    for name in [name for name in alone if name.startswith(f"{case}.20.weight.")]:
        torch.testing.assert_close(first[name], alone[name], rtol=1e-9, atol=1e-9)
        assert torch.equal(first[name], second[name])
    counters = alone[f"{case}.20.tokens_since_fired"]
    assert torch.equal(first[f"{case}.20.tokens_since_fired"], counters)
    torch.testing.assert_close(first[f"{case}.20.window"], alone[f"{case}.20.window"], rtol=1e-9, atol=0)
    if case.startswith(("topk", "batch_topk", "matryoshka")):
        assert 1 < int((counters > 0).sum()) < 40
        assert float(alone[f"{case}.20.window"][2]) > 0  # AuxK had dead latents


@pytest.mark.parametrize("case", ["topk", "batch_topk"])
def test_curves_over_500_steps(both: tuple[Results, Results, Results], case: str) -> None:
    alone, first, _ = both
    prefix = f"curves.{case}."
    assert len(alone[f"{prefix}curve.fvu"]) == 20
    for name in ("fvu", "valid_fvu", "loss", "l0"):
        curve = f"{prefix}curve.{name}"
        torch.testing.assert_close(first[curve], alone[curve], rtol=1e-3, atol=0)
    for name in ("dead_fraction", "tokens", "learning_rate"):
        assert torch.equal(first[f"{prefix}curve.{name}"], alone[f"{prefix}curve.{name}"])
    assert torch.equal(first[f"{prefix}tokens_since_fired"], alone[f"{prefix}tokens_since_fired"])


@pytest.mark.parametrize("case", ["batch_topk", "relu"])
def test_resampling_and_rows_that_fill_no_batch(both: tuple[Results, Results, Results], case: str) -> None:
    alone, first, second = both
    prefix = f"resampled.{case}."
    assert bool((alone[f"{prefix}curve.dead_fraction"] > 0).any())
    for name in [name for name in alone if name.startswith(prefix)]:
        if name in second:
            assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], alone[name], rtol=1e-6, atol=1e-8)


def test_a_resumed_training_ends_with_the_same_bits(both: tuple[Results, Results, Results]) -> None:
    for found in both:
        names = [name.removeprefix("resumed.whole.") for name in found if name.startswith("resumed.whole.")]
        assert len(names) > 10
        for name in names:
            assert torch.equal(found[f"resumed.parts.{name}"], found[f"resumed.whole.{name}"]), name


def test_a_failure_is_that_of_all(both: tuple[Results, Results, Results]) -> None:
    assert all(found["failing.failed"] == 1 for found in both)
