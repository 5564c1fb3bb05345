"""The whole training on small synthetic data: it learns, repeats itself, and survives a kill at any step."""

from __future__ import annotations

import logging
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.saes import save
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.loop import Trained, train
from tests.training.streams import Rows, activations, small_config, small_settings


def run(checkpoints: Path, kernel: str = "auto", **changes: object) -> Trained:
    torch.set_num_threads(1)
    settings = small_settings(**changes)
    source, valid = Rows(activations(8000), settings.batch_size), Rows(activations(2000, seed=1), settings.batch_size)
    return train(small_config(), kernel, source, valid, settings, checkpoints)


def sae_bytes(trained: Trained, folder: Path) -> bytes:
    save(trained.sae, folder)
    return (folder / "sae.safetensors").read_bytes()


def test_it_learns_and_reports(tmp_path: Path) -> None:
    trained = run(tmp_path)
    first, last = trained.curves[0], trained.curves[-1]
    assert [row["step"] for row in trained.curves] == [20, 40, 60, 80, 100, 120]
    assert last["tokens"] == 120 * 256
    assert last["fvu"] < 0.5 * first["fvu"]
    assert last["valid_fvu"] == pytest.approx(last["fvu"], rel=0.15)  # same distribution, other rows
    assert 0 < last["l0"] <= 6
    fires = trained.sae.encode(activations(2000, seed=1)[:1000]) > 0
    assert last["valid_l0"] == pytest.approx(float(fires.sum(1).double().mean()))
    assert last["valid_dead_fraction"] == pytest.approx(float((~fires.any(0)).double().mean()))
    norms = trained.sae.atoms.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-6)
    assert not trained.sae.W_dec.requires_grad  # type: ignore[union-attr]


def test_the_reference_kernel_learns_alike(tmp_path: Path) -> None:
    fast, plain = run(tmp_path / "a"), run(tmp_path / "b", kernel="reference")
    assert fast.curves[0]["loss"] == pytest.approx(plain.curves[0]["loss"], rel=1e-4)
    assert fast.curves[-1]["valid_fvu"] == pytest.approx(plain.curves[-1]["valid_fvu"], rel=0.05)


def test_same_bytes_twice_and_other_bytes_with_another_seed(tmp_path: Path) -> None:
    first, second, other = (
        sae_bytes(run(tmp_path / f"c{index}", seed=seed), tmp_path / f"s{index}")
        for index, seed in enumerate((3, 3, 4))
    )
    assert first == second != other


def test_resuming_from_every_checkpoint_ends_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    wanted = sae_bytes(whole, tmp_path / "sae")
    for stop in (25, 50, 75, 120):
        folder = tmp_path / f"from{stop}"
        with pytest.raises(KeyboardInterrupt):
            run_until(folder, stop)
        found = latest_checkpoint(folder)
        assert found is not None
        assert found.step == stop
        resumed = run(folder)
        assert sae_bytes(resumed, tmp_path / "again") == wanted
        assert resumed.curves == whole.curves
        assert resumed.dead_fraction == whole.dead_fraction


class Stop(Rows):
    """Interrupts once the given number of steps is done."""

    stop = 0

    def batch(self, step: int) -> torch.Tensor:
        if step > self.stop:  # the loop asks for one batch ahead
            raise KeyboardInterrupt
        return super().batch(step)


def run_until(checkpoints: Path, stop: int) -> None:
    torch.set_num_threads(1)
    settings = small_settings()
    source = Stop(activations(8000), settings.batch_size)
    source.stop = stop
    valid = Rows(activations(2000, seed=1), settings.batch_size)
    train(small_config(), "auto", source, valid, settings, checkpoints)
    raise KeyboardInterrupt  # the end was reached: nothing was left to interrupt


def run_to_file(checkpoints: Path, folder: Path) -> None:
    sae_bytes(run(checkpoints, num_steps=400, checkpoint_every=7), folder)


def test_kill_9_at_any_instant_then_resume_is_byte_equal(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")  # its server imports torch and lightning once for all
    processes.set_forkserver_preload(["plmsae.training.loop"])

    def start(name: str) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=run_to_file, args=(tmp_path / name, tmp_path / f"{name}.sae"))
        process.start()
        return process

    calm = start("calm")
    calm.join(timeout=120)
    assert calm.exitcode == 0
    generator = random.Random(0)
    for _ in range(3):
        before, process = steps_done(tmp_path / "killed"), start("killed")
        deadline = time.monotonic() + 60
        while steps_done(tmp_path / "killed") <= before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9
    assert 0 < steps_done(tmp_path / "killed") < 400
    last = start("killed")
    last.join(timeout=120)
    assert last.exitcode == 0
    one, other = ((tmp_path / f"{name}.sae" / "sae.safetensors").read_bytes() for name in ("calm", "killed"))
    assert one == other


def steps_done(folder: Path) -> int:
    names = [path.name for path in folder.glob("step-*")] if folder.is_dir() else []
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def test_nothing_is_said_or_written_by_the_loop_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "checkpoints", num_steps=3, validate_every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not recwarn.list


def test_progress_says_how_far_and_how_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="plmsae"):
        run(tmp_path, num_steps=4, validate_every=2)
    assert "train_sae done=1024 total=1024 tokens_per_s=" in caplog.text


def test_a_divergence_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="diverged") as error:
        run(tmp_path, learning_rate=1e6, checkpoint_every=1, validate_every=5)
    assert "last good checkpoint: step" in (error.value.where or "")
    assert "learning_rate" in (error.value.fix or "")


def test_nan_in_the_data_stops_before_a_checkpoint_is_spoilt(tmp_path: Path) -> None:
    settings = small_settings()
    x = activations(8000)
    x[30 * 256 + 5, 2] = float("nan")
    with pytest.raises(DataError, match="loss of step 30 is not finite") as error:
        train(small_config(), "auto", Rows(x, 256), Rows(activations(500, 1), 256), settings, tmp_path)
    assert "last good checkpoint: step 25" in (error.value.where or "")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())


def test_a_normaliser_that_scales_every_token_is_refused(tmp_path: Path) -> None:
    source = Rows(activations(2000), 256)
    config = small_config().replace(normaliser={"kind": "token_rms"})
    with pytest.raises(UserError, match="scales every token by itself"):
        train(config, "auto", source, source, small_settings(), tmp_path)


def test_constant_activations_are_refused(tmp_path: Path) -> None:
    flat = Rows(torch.ones(1000, 16), 256)
    with pytest.raises(DataError, match="all the same"):
        train(small_config(), "auto", flat, flat, small_settings(), tmp_path)
