"""SIGTERM and Ctrl-C at any place of a training: a checkpoint, "try again", and the same bytes in the end."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plmsae.errors import TryAgainError
from plmsae.saes import save
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.interruption import Interruption, StopError
from plmsae.training.loop import Trained, train
from tests.training.streams import Rows, activations, small_config, small_settings

# Looks, resampling and checkpoints at different steps; one step has all three.
SETTINGS: dict[str, Any] = {
    "num_steps": 36,
    "validate_every": 6,
    "num_valid_rows": 1000,
    "checkpoint_every": 10,
    "resample_steps": (9, 30),
    "num_resample_rows": 1500,
    "dead_after_tokens": 256,
}


class Signalling(Rows):
    """Sends this process a signal while the batch of a step is being read, once; as many times before are let pass."""

    seconds = 5.0  # a handler that does not raise would let the read go on

    def __init__(self, x: torch.Tensor, step: int, passes: int = 0, number: int = signal.SIGTERM) -> None:
        super().__init__(x, 256)
        self.step, self.passes, self.number = step, passes, number

    def batch(self, step: int) -> torch.Tensor:
        if step == self.step:
            self.passes -= 1
            if self.passes == -1:
                os.kill(os.getpid(), self.number)
                time.sleep(self.seconds)
        return super().batch(step)


def run(folder: Path, source: Rows | None = None, valid: Rows | None = None, **changes: Any) -> Trained:
    torch.set_num_threads(1)
    architecture = changes.pop("architecture", "batch_topk")
    settings = small_settings(**{**SETTINGS, **changes})
    config = small_config(k=2, dictionary_size=256, architecture=architecture)
    source = source or Rows(activations(8000), 256)
    return train(config, "auto", source, valid or Rows(activations(2000, seed=1), 256), settings, folder)


def bytes_of(trained: Trained, folder: Path) -> bytes:
    save(trained.sae, folder)
    return (folder / "sae.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Trained]:
    folder = tmp_path_factory.mktemp("whole")
    trained = run(folder / "checkpoints")
    assert trained.dead_fraction > 0.1  # resampling had something to do
    return bytes_of(trained, folder / "sae"), trained


def stopped(folder: Path, step: int, **places: Any) -> None:
    """A training that a signal ends after a step, handlers as before, and its checkpoint."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    start = time.monotonic()
    with pytest.raises(TryAgainError, match=f"stopped by SIGTERM: a checkpoint after step {step} of 36 is kept"):
        run(folder, **places)
    assert time.monotonic() - start < 5
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    found = latest_checkpoint(folder)
    assert found is not None
    assert found.step == step


def goes_on(folder: Path, whole: tuple[bytes, Trained]) -> None:
    resumed = run(folder)
    assert bytes_of(resumed, folder.parent / "again") == whole[0]
    assert resumed.curves == whole[1].curves
    assert resumed.dead_fraction == whole[1].dead_fraction


@pytest.mark.parametrize("step", [9, 10, 13, 35])
def test_while_rows_are_read(tmp_path: Path, whole: tuple[bytes, Trained], step: int) -> None:
    """The loop asks for one batch ahead: while that of `step` is read, `step - 1` steps are done."""
    stopped(tmp_path / "c", step - 1, source=Signalling(activations(8000), step))
    goes_on(tmp_path / "c", whole)


def test_while_threads_read_ahead(tmp_path: Path, whole: tuple[bytes, Trained]) -> None:
    torch.set_num_threads(1)
    settings, config = small_settings(**SETTINGS), small_config(k=2, dictionary_size=256, architecture="batch_topk")
    source, valid = Signalling(activations(8000), 20), Rows(activations(2000, seed=1), 256)
    source.seconds = 0.2  # that a thread reads for cannot be cut; the checkpoint does not wait for it
    with pytest.raises(TryAgainError, match=r"a checkpoint after step 1[5-9] of 36 is kept"):
        train(config, "auto", source, valid, settings, tmp_path / "c", num_workers=2)
    goes_on(tmp_path / "c", whole)


@pytest.mark.parametrize("step", [1, 4])  # of the initial centre's rows; 4 is read for it, 1 in the second pass too
def test_before_the_first_step(tmp_path: Path, whole: tuple[bytes, Trained], step: int) -> None:
    source = Signalling(activations(8000), step, passes=int(step == 1))
    with pytest.raises(TryAgainError, match="no step was done yet"):
        run(tmp_path / "c", source)
    assert latest_checkpoint(tmp_path / "c") is None
    goes_on(tmp_path / "c", whole)


# A look reads its rows twice, for the threshold and for the metrics; looks are at 6, 12, ..., 36.
@pytest.mark.parametrize(("passes", "step"), [(0, 6), (1, 6), (2, 12), (9, 30), (11, 36)])
def test_while_it_looks_at_held_out_rows(tmp_path: Path, whole: tuple[bytes, Trained], passes: int, step: int) -> None:
    stopped(tmp_path / "c", step, valid=Signalling(activations(2000, seed=1), 2, passes))
    goes_on(tmp_path / "c", whole)


# Batch 4 is read for the initial centre, for its step, and twice for each resampling.
@pytest.mark.parametrize(("passes", "step"), [(2, 9), (3, 9), (5, 30)])
def test_while_it_looks_for_new_directions(
    tmp_path: Path, whole: tuple[bytes, Trained], passes: int, step: int
) -> None:
    stopped(tmp_path / "c", step, source=Signalling(activations(8000), 4, passes))
    goes_on(tmp_path / "c", whole)


class Calls:
    """Wraps a function: at one of its calls it first sends this process a signal."""

    def __init__(self, function: Callable[..., Any], call: int, number: int = signal.SIGTERM) -> None:
        self.function, self.left, self.number = function, call, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
        return self.function(*arguments, **named)


@pytest.mark.parametrize("step", [1, 12, 30, 36])
def test_in_the_middle_of_a_step_it_is_finished_first(
    tmp_path: Path, whole: tuple[bytes, Trained], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", Calls(torch.nn.utils.clip_grad_norm_, step))
        stopped(tmp_path / "c", step)
    goes_on(tmp_path / "c", whole)


def test_while_a_checkpoint_is_written(
    tmp_path: Path, whole: tuple[bytes, Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Calls(os.fsync, 6))  # four for each checkpoint
        stopped(tmp_path / "c", 20)
    goes_on(tmp_path / "c", whole)


def test_ctrl_c_keeps_a_checkpoint_and_stays_what_it_is(tmp_path: Path, whole: tuple[bytes, Trained]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", Signalling(activations(8000), 15, number=signal.SIGINT))
    found = latest_checkpoint(tmp_path / "c")
    assert found is not None
    assert found.step == 14
    goes_on(tmp_path / "c", whole)


class Timed(Rows):
    """Starts a timer when the first batch is read."""

    timer: threading.Timer

    def batch(self, step: int) -> torch.Tensor:
        if self.timer.ident is None:
            self.timer.start()
        return super().batch(step)


def test_signals_again_and_again_at_any_time(tmp_path: Path, whole: tuple[bytes, Trained]) -> None:
    chance, reached = random.Random(1), []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # after the training it means nothing
    for attempt in range(1, 60):
        source = Timed(activations(8000), 256)
        source.timer = threading.Timer(chance.uniform(0.0, 0.02 * attempt), os.kill, (os.getpid(), signal.SIGTERM))
        try:
            run(tmp_path / "c", source)
            break
        except TryAgainError:
            found = latest_checkpoint(tmp_path / "c")
            reached.append(0 if found is None else found.step)
        finally:
            if source.timer.ident is not None:  # no batch was left to read
                source.timer.join()
    signal.signal(signal.SIGTERM, before)
    assert any(reached), "a signal must have come in the middle"
    assert reached == sorted(reached)
    goes_on(tmp_path / "c", whole)


def test_in_another_thread_handlers_are_left_alone(tmp_path: Path) -> None:
    found: list[Any] = []

    def work() -> None:
        found.append(run(tmp_path, num_steps=3, resample_steps=()))
        found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 2
    assert found[1] == signal.getsignal(signal.SIGTERM)


def test_sections_by_hand() -> None:
    kept: list[str] = []

    def work() -> None:
        with Interruption() as interruption:
            interruption.keep, interruption.kept = (lambda: kept.append("saved")), "half"
            with interruption.at_once():
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.requested  # and nothing was raised: it is not said that this may be cut
            with pytest.raises(StopError), interruption.at_once():
                raise AssertionError("a section must not begin after a signal")
            assert kept == ["saved"]
            interruption.stop()

    with pytest.raises(TryAgainError, match="stopped by SIGTERM: half"):
        work()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_second_ctrl_c_does_not_wait() -> None:
    def work() -> None:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert interruption.requested
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it must have ended here")

    with pytest.raises(KeyboardInterrupt):
        work()
