import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from plmsae.training.checkpoint import Checkpoint, latest_checkpoint, latest_step, save_checkpoint


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, Checkpoint(step, {"w": torch.full((3,), float(step))}, {"rows": [step]}))


def test_round_trip_and_only_the_newest_two_stay(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (5, 90, 100):  # as text, 90 sorts behind 100
        save(tmp_path, step)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.info) == (100, {"rows": [100]})
    assert torch.equal(found.tensors["w"], torch.full((3,), 100.0))
    assert latest_step(tmp_path) == 100
    assert len(list(tmp_path.iterdir())) == 2


def truncate(folder: Path) -> None:
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def flip(folder: Path) -> None:
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def cut_json(folder: Path) -> None:
    (folder / "state.json").write_text('{"schema_version": 1, "st')


def no_tensors(folder: Path) -> None:
    (folder / "state.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, cut_json, no_tensors])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    with caplog.at_level(logging.WARNING, logger="plmsae"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "step-000000000020 is damaged" in caplog.text


def test_a_kill_while_writing_leaves_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, 10)
    half = tmp_path / ".step-000000000020"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    save(tmp_path, 20)
    assert not half.exists()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    truncate(save(tmp_path, 20))
    save(tmp_path, 20)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 20
