"""Whatever ends a training, and wherever: the next one goes on from the newest checkpoint that is whole, and the last
checkpoint of all has the bytes of an undisturbed run's: weights, Adam's moments, counters, controllers, and the curves.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from plmsae.errors import DataError, TryAgainError
from plmsae.saes import build, trainable_architectures
from plmsae.training import checkpoint as checkpoints
from plmsae.training.checkpoint import latest_checkpoint, latest_step
from plmsae.training.loop import train_all
from plmsae.training.member import Member, Plan
from tests.training.streams import Rows, activations, small_config, small_settings
from tests.training.test_architectures import CONFIGS
from tests.training.test_checkpoint import cut_json, flip, no_tensors, truncate
from tests.training.test_interruption import Signalling

STEPS, EVERY = 40, 6
SETTINGS: dict[str, Any] = {
    "num_steps": STEPS,
    "validate_every": 5,
    "num_valid_rows": 600,
    "checkpoint_every": EVERY,
    "dead_after_tokens": 256,
    "penalty_warmup_fraction": 0.5,
}


def plans() -> list[Plan]:
    """One of every architecture; some with what has state of its own: annealing, resampling, a controller."""
    settings = small_settings(**SETTINGS)
    resampled = small_settings(**SETTINGS, resample_steps=(9, 30), num_resample_rows=700)
    annealed = small_settings(**SETTINGS, anneal_fraction=0.5, anneal_from=16)
    configs = {name: small_config(architecture=name, **CONFIGS[name]) for name in trainable_architectures()}
    # So wide and so few of it at a time that latents die.
    configs["batch_topk"] = small_config(k=2, dictionary_size=256, architecture="batch_topk")
    own = {"batch_topk": resampled, "gated": resampled, "topk": annealed}
    return [Plan(config, own.get(name, settings), name=name) for name, config in configs.items()]


class Crash(BaseException):
    """What nobody expects and nobody cleans up after."""


class Crashing(Rows):
    """The end comes when the batch of a step is wanted; the loop asks for one batch ahead."""

    def __init__(self, step: int) -> None:
        super().__init__(activations(8000), 256)
        self.step = step

    def batch(self, step: int) -> torch.Tensor:
        if step == self.step:
            raise Crash
        return super().batch(step)


def run(folder: Path, source: Rows | None = None) -> None:
    torch.set_num_threads(1)
    train_all(plans(), source or Rows(activations(8000), 256), Rows(activations(2000, seed=1), 256), folder)


def last_bytes(folder: Path) -> tuple[bytes, ...]:
    last = folder / f"step-{STEPS:012d}"
    return tuple((last / name).read_bytes() for name in ("state.safetensors", "state.json"))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ...]:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    found = latest_checkpoint(folder)
    assert found is not None
    wide = next(member for member in found.info["members"] if member["name"] == "batch_topk")
    assert max(row["dead_fraction"] for row in wide["curves"]) > 0.1  # there was something to resample
    return last_bytes(folder)


@pytest.mark.parametrize("seed", [0, 1])
def test_crashes_at_random_steps_and_signals_in_between(tmp_path: Path, wanted: tuple[bytes, ...], seed: int) -> None:
    chance = random.Random(seed)
    for step in sorted(chance.sample(range(9, STEPS), 3)):
        if chance.random() < 0.5:
            with pytest.raises(Crash):
                run(tmp_path, Crashing(step))
            assert latest_step(tmp_path) >= (step - 1) // EVERY * EVERY  # type: ignore[operator]
        else:
            with pytest.raises(TryAgainError):
                run(tmp_path, Signalling(activations(8000), step))
            assert latest_step(tmp_path) == step - 1
    run(tmp_path)
    assert last_bytes(tmp_path) == wanted


# The calls that write a checkpoint, and which of them, counted over the training, is the last thing that happens.
@pytest.mark.parametrize(
    ("place", "name", "call"),
    [(checkpoints, "save_file", 2), (os, "fsync", 6), (os, "rename", 3), (checkpoints, "_sync", 12)],
)
def test_a_crash_while_a_checkpoint_is_written(
    tmp_path: Path, wanted: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int
) -> None:
    function, calls = getattr(place, name), iter(range(1, 1000))

    def crashes(*arguments: Any) -> Any:
        if next(calls) == call:
            raise Crash
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, crashes)
        with pytest.raises(Crash):
            run(tmp_path)
    run(tmp_path)
    assert last_bytes(tmp_path) == wanted


@pytest.mark.parametrize("damage", [truncate, flip, cut_json, no_tensors])
def test_the_newest_checkpoint_is_damaged(
    tmp_path: Path, wanted: tuple[bytes, ...], damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Crash):
        run(tmp_path, Crashing(33))
    damage(tmp_path / f"step-{30:012d}")
    with caplog.at_level(logging.INFO, logger="plmsae"):
        run(tmp_path)
    assert "step-000000000030 is damaged" in caplog.text
    assert f"resumes after step 24 of {STEPS}" in caplog.text
    assert last_bytes(tmp_path) == wanted


def test_no_checkpoint_is_left_whole(tmp_path: Path, wanted: tuple[bytes, ...]) -> None:
    with pytest.raises(Crash):
        run(tmp_path, Crashing(20))
    for folder in tmp_path.iterdir():
        truncate(folder)
    run(tmp_path)
    assert last_bytes(tmp_path) == wanted


# --- Guards: what is not a number never gets into a checkpoint.


def poisoned(folder: Path, architecture: str) -> DataError:
    x = activations(8000)
    x[14 * 256 + 5, 2] = float("nan")
    config = small_config(architecture=architecture, **CONFIGS[architecture])
    with pytest.raises(DataError) as error:
        train_all([Plan(config, small_settings(**SETTINGS))], Rows(x, 256), Rows(activations(600, 1), 256), folder)
    return error.value


@pytest.mark.parametrize("architecture", trainable_architectures())
def test_nan_in_a_batch_stops_every_architecture_before_its_weights_change(tmp_path: Path, architecture: str) -> None:
    error = poisoned(tmp_path, architecture)
    assert error.problem == "the training diverged: the loss of step 14 is not finite"
    assert "last good checkpoint: step 12" in (error.where or "")


def test_a_gradient_that_overflows_in_the_step_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss was finite; the weights are not any more."""
    clip, calls = torch.nn.utils.clip_grad_norm_, iter(range(1, 1000))

    def overflows(parameters: list[torch.nn.Parameter], bound: float) -> torch.Tensor:
        if next(calls) == 18:
            assert parameters[0].grad is not None
            parameters[0].grad[0, 0] = float("inf")
        return clip(parameters, bound)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflows)
    plan = Plan(small_config(), small_settings(**SETTINGS))
    with pytest.raises(DataError, match="W_enc is not finite after step 18") as error:
        train_all([plan], Rows(activations(8000), 256), Rows(activations(600, 1), 256), tmp_path)
    assert "last good checkpoint: step 12" in (error.value.where or "")


def test_held_out_rows_that_get_far_worse(tmp_path: Path) -> None:
    class Moving(Rows):
        reads = 0

        def batch(self, step: int) -> torch.Tensor:
            self.reads += 1
            return super().batch(step) + (0.0 if self.reads <= 3 else 100.0)

    plan = Plan(small_config(), small_settings(**SETTINGS))
    with pytest.raises(DataError, match=r"FVU on held-out rows is .* at step 10"):
        train_all([plan], Rows(activations(8000), 256), Moving(activations(600, 1), 256), tmp_path)


class Waits(TorchDispatchMode):
    """Counts how often a number is taken off the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", trainable_architectures())
def test_on_a_gpu_the_guard_waits_for_no_step_and_finds_it_later(architecture: str) -> None:
    """The tensors are on the CPU here; what a step asks of them is what it would ask of a GPU."""
    counts = {}
    for device in ("cpu", "cuda"):
        settings = small_settings(**SETTINGS, device=device)
        plan = Plan(small_config(architecture=architecture, **CONFIGS[architecture]), settings)
        member = Member(plan, build(plan.config, seed=0), 1.0)
        with Waits() as waits:
            member.step(activations(256))
        counts[device] = waits.count
        if device == "cuda":
            member.step(activations(256) * float("nan"))
            member.step(activations(256))
            with pytest.raises(DataError, match="not finite"):
                member.check_finite()
    assert counts["cuda"] == counts["cpu"] - 1
