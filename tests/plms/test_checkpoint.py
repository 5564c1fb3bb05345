"""Pickled weights: tensors alone are read, and only where a family allows the file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from tests.plms import tiny


class Harmful:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


@pytest.fixture
def folder(tmp_path):
    """ProtT5, whose publisher offers `pytorch_model.bin` alone."""
    tiny.prot_t5(tmp_path)
    return tmp_path


def pickled(folder, extra=None):
    tensors = load_file(folder / "model.safetensors")
    torch.save({**tensors, **(extra or {})}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickled_tensors_are_those_of_the_safetensors(folder):
    plm = load_plm(str(folder))
    tokens = plm.tokenize(["ACDEFGH"])
    pickled(folder, {"epoch": 3})
    again = load_plm(str(folder))
    assert torch.equal(again.hidden(tokens, 2), plm.hidden(tokens, 2))
    assert again.revision.startswith("sha256:")
    assert again.revision != plm.revision


def test_safetensors_come_first(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not looked at")
    load_plm(str(folder))


def test_a_pickle_that_could_run_code_is_not_loaded(folder, capsys):
    pickled(folder, {"extra": Harmful()})
    with pytest.raises(DataError, match=r"holds more than tensors and is not loaded"):
        load_plm(str(folder))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("keep", [0, 10, 3000])
def test_a_pickle_that_is_cut_short(folder, keep):
    pickled(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"'pytorch_model.bin' (is corrupted|holds more than tensors)"):
        load_plm(str(folder))


def test_neither_form_of_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no model.safetensors or pytorch_model.bin"):
        load_plm(str(folder))
