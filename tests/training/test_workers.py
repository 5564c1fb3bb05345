"""Threads that read ahead change nothing: not the SAE, not a resume after a kill, wherever in an epoch it happens."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest
import torch

from plmsae.activations.metadata import Normaliser, StoreMetadata, write_metadata
from plmsae.activations.reader import ActivationReader
from plmsae.activations.writer import write_chunks, write_index
from plmsae.errors import UserError
from plmsae.saes import save
from plmsae.training.checkpoint import latest_checkpoint
from plmsae.training.data import Scaled
from plmsae.training.loop import Trained, train
from tests.training.streams import D_MODEL, activations, small_config, small_settings

STEPS = 300  # of 256 rows: 9.6 epochs of 8,000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    for split, num_rows in (("train", 8000), ("valid", 2000)):
        x = activations(num_rows, seed=num_rows)
        write_index(folder / split, [write_chunks(folder / split, x, torch.arange(num_rows), 100)])
    metadata = StoreMetadata(
        plm="plm",
        plm_revision="revision",
        layer=1,
        hook="residual",
        dtype="float32",
        d_model=D_MODEL,
        block_rows=100,
        num_tokens={"train": 8000, "valid": 2000},
        normaliser=Normaliser(scale=1.0),
        sequences_sha256="0" * 64,
    )
    write_metadata(folder, metadata)
    return folder


def run(store: Path, checkpoints: Path, num_workers: int, world_size: int = 1, num_steps: int = STEPS) -> Trained:
    torch.set_num_threads(1)
    settings = small_settings(num_steps=num_steps, checkpoint_every=7)
    source, valid = (
        Scaled(ActivationReader(store, split, 256, 3, 1000, ahead=num_workers > 0, world_size=world_size), 1.0)
        for split in ("train", "valid")
    )
    return train(small_config(), "auto", source, valid, settings, checkpoints, num_workers=num_workers)


def run_to_file(store: Path, checkpoints: Path, num_workers: int, folder: Path) -> None:
    save(run(store, checkpoints, num_workers).sae, folder)


@pytest.fixture(scope="module")
def calm(store: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("calm")
    run_to_file(store, folder / "checkpoints", 0, folder / "sae")
    return (folder / "sae" / "sae.safetensors").read_bytes()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_kill_9_mid_epoch_then_resume_is_byte_equal(store: Path, calm: bytes, tmp_path: Path, num_workers: int) -> None:
    processes = multiprocessing.get_context("forkserver")  # its server imports torch and lightning once for all
    processes.set_forkserver_preload(["plmsae.training.loop", "plmsae.activations.reader"])
    arguments = (store, tmp_path / "checkpoints", num_workers, tmp_path / "sae")
    generator = random.Random(num_workers)
    killed_at = []
    for _ in range(2):
        process = processes.Process(target=run_to_file, args=arguments)
        before = steps_done(tmp_path / "checkpoints")
        process.start()
        deadline = time.monotonic() + 60
        while steps_done(tmp_path / "checkpoints") <= before and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -9
        killed_at.append(steps_done(tmp_path / "checkpoints"))
    assert 0 < killed_at[0] < killed_at[1] < STEPS
    assert any(step * 256 % 8000 for step in killed_at)
    last = processes.Process(target=run_to_file, args=arguments)
    last.start()
    last.join(timeout=120)
    assert last.exitcode == 0
    assert (tmp_path / "sae" / "sae.safetensors").read_bytes() == calm


def steps_done(folder: Path) -> int:
    names = [path.name for path in folder.glob("step-*")] if folder.is_dir() else []
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def test_another_number_of_processes_is_refused(store: Path, tmp_path: Path) -> None:
    run(store, tmp_path, 0, world_size=2, num_steps=14)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match="other batches than it began with: world size was 2 and is 1") as error:
        run(store, tmp_path, 0, world_size=1, num_steps=21)
    assert error.value.where == str(tmp_path)
