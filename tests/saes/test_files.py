import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes import load_folder, save
from plmsae.saes.files import read_config
from tests.saes.conftest import generic_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(generic_sae(), tmp_path / "sae")
    return tmp_path / "sae"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "sae.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "sae.safetensors")


def poison(tensors: dict[str, Tensor]) -> None:
    tensors["W_enc"][3, 4] = float("nan")
    tensors["W_enc"][5, 6] = float("-inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b_enc"), "tensor 'b_enc' is missing"),
        (lambda t: t.update(b_encoder=torch.zeros(40)), "unknown tensor 'b_encoder'"),
        (lambda t: t.update(W_dec=t["W_dec"].t().contiguous()), r"'W_dec' has shape \(12, 40\).*implies \(40, 12\)"),
        (lambda t: t.update(b_dec=t["b_dec"].half()), "'b_dec' is torch.float16"),
        (poison, "'W_enc' holds 2 NaN or infinite values"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(DataError, match=message) as error:
        load_folder(folder)
    assert str(folder / "sae.safetensors") in (error.value.where or "")
    assert error.value.fix


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 2**60) + data[8:],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: b"PK\x03\x04" + data[4:],
    ],
)
def test_a_damaged_file_is_an_error_and_not_a_traceback(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    path = folder / "sae.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="corrupted") as error:
        load_folder(folder)
    assert str(path) in (error.value.where or "")
    assert "dvc checkout" in (error.value.fix or "")


def test_missing_pieces_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no SAE"):
        load_folder(tmp_path)
    (folder / "sae.safetensors").unlink()
    with pytest.raises(DataError, match=r"'sae.safetensors' is missing"):
        load_folder(folder)


def test_a_configuration_that_does_not_fit_its_architecture(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"architecture": "top_k"}, "unknown SAE architecture 'top_k'"),
        ({"options": {"aux_q": 1}}, "no option 'aux_q'"),
        ({"options": {"aux_k": 41}}, "aux_k = 41"),
        ({"d_model": 13}, "implies"),
    ):
        (folder / "config.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(DataError, match=message):
            load_folder(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        read_config(folder)


def test_a_diverged_sae_is_not_saved(tmp_path: Path) -> None:
    sae = generic_sae()
    with torch.no_grad():
        sae.b_dec[2] = float("nan")
    with pytest.raises(DataError, match="'b_dec' holds 1 NaN"):
        save(sae, tmp_path / "sae")
    assert not list((tmp_path / "sae").iterdir())


def test_the_written_file_has_a_fixed_layout(folder: Path) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "sae.safetensors").items()}
    assert found == {"W_enc": (40, 12), "W_dec": (40, 12), "b_enc": (40,), "b_dec": (12,), "latent_max": (40,)}
