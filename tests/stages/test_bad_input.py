"""What a user can get wrong about an SAE, through the command line: the exit code, the words, and nothing begun.

Files of other libraries are in tests/saes/formats and tests/commands/test_export.py, activations that do not fit the
stored type in tests/stages/test_extract_activations.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plmsae import cli
from plmsae.artifacts.manifest import Manifest, list_files, write_manifest
from plmsae.saes import save
from tests.saes.conftest import generic_sae
from tests.stages.test_train_sae import SCALE, make_store
from tests.training.streams import activations

PARAMS = Path(__file__).parents[2] / "params.yaml"
SMALL = ("expansion_factor=4", "k=6", "tokens=40000", "batch_size=256", "checkpoint_every=1", "threads=1", "device=cpu")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", SCALE * activations(600), SCALE * activations(300, seed=1))


def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> int:
    """The exit code of `plmsae run train_sae` in an empty folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    settings = [text for change in (*SMALL, *changes) for text in ("--set", f"train_sae.{change}")]
    inputs = ["--input", f"activations={tmp_path / 'store'}"]
    return cli.main(["run", "train_sae", "--params", str(PARAMS), *inputs, *settings])


def begun(tmp_path: Path) -> list[str]:
    """Outputs and checkpoints that a training has made."""
    return [path.name for path in (tmp_path / "work").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["k=65"], "k = 65 is larger than the dictionary of 64"),
        (["architecture=batch_topk", "k=65"], "k = 65 is larger than the dictionary of 64"),
        (["architecture=matryoshka", "group_fractions=[0.5, 0.4]"], "sum to 1"),
        (["architecture=matryoshka", "group_fractions=[0.01, 0.99]"], "group_sizes = [0, 64]"),
        (["architecture=jump_relu", "initial_threshold=-0.1"], "train_sae.initial_threshold"),
        (["aux_k=65"], "aux_k = 65 is larger"),
        (["learning_rate=.nan"], "train_sae.learning_rate"),
        (["architecture=relu", "penalty=.inf"], "train_sae.penalty"),
    ],
)
def test_a_training_that_cannot_work_does_not_begin(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: list[str],
    words: str,
) -> None:
    assert train(tmp_path, monkeypatch, *changes) == 2
    assert words in capsys.readouterr().err
    assert begun(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_model": 17}, "holds a block of shape [256, 16], not [rows, 17]"),
        ({"schema_version": 2}, "store schema 2 is newer than this plmsae reads (1)"),
        ({"normaliser": {"kind": "rms", "scale": float("nan")}}, "store's description is not valid"),
        ({"num_tokens": {"train": 601, "valid": 300}}, "600 rows, not 601"),
    ],
)
def test_a_store_that_contradicts_itself_is_not_trained_on(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    path = store / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    empty: dict[str, Any] = {"params": {}, "inputs": {}, "source_files": {}, "environment": {}}
    files = {name: entry for name, entry in list_files(store).items() if name != "manifest.json"}
    write_manifest(store, Manifest(stage="extract_activations", kind="activations", files=files, **empty))
    assert train(tmp_path, monkeypatch) == 3
    assert words in capsys.readouterr().err
    assert begun(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_store_made_elsewhere_with_values_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    """Ours cannot hold any."""
    rows = SCALE * activations(600)
    rows[400, 3] = value
    make_store(tmp_path / "store", rows, SCALE * activations(300, seed=1))
    assert train(tmp_path, monkeypatch) == 3
    message = capsys.readouterr().err
    assert "activation rows hold NaN or infinity" in message
    assert "extract the activations again" in message
    assert not (tmp_path / "work" / "outputs" / "train_sae").exists()


def poison(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[3:5].fill_(value)


@pytest.mark.parametrize(
    ("architecture", "change", "words"),
    [
        ("topk", lambda t: t.pop("b_enc"), "tensor 'b_enc' is missing"),
        ("topk", lambda t: t.update(b_encoder=torch.zeros(40)), "unknown tensor 'b_encoder'"),
        ("topk", lambda t: t.update(W_dec=t["W_dec"].t().contiguous()), "'W_dec' has shape (12, 40); config.json"),
        ("topk", lambda t: t.update(b_dec=t["b_dec"].half()), "'b_dec' is torch.float16"),
        ("topk", poison("W_enc", float("nan")), "'W_enc' holds 2 NaN or infinite values"),
        ("gated", poison("r_mag", float("inf")), "'r_mag' holds 2 NaN or infinite values"),
        ("batch_topk", lambda t: t["threshold"].fill_(-0.5), "the threshold is -0.5: negative"),
        ("jump_relu", poison("threshold", -1e-3), "2 thresholds are negative"),
    ],
)
def test_weights_that_do_not_fit_are_not_used(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    architecture: str,
    change: Callable[[dict[str, Tensor]], object],
    words: str,
) -> None:
    folder = written(architecture, tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "sae.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "sae.safetensors")
    refused(folder, words, capsys)


@pytest.mark.parametrize(
    ("architecture", "change", "words"),
    [
        ("topk", {"d_model": 13}, "'W_enc' has shape (40, 12); config.json implies (40, 13)"),
        ("topk", {"k": 41}, "k = 41 is larger than the dictionary of 40 latents"),
        ("topk", {"schema_version": 2}, "SAE format 2 is newer than this plmsae reads (1)"),
        ("topk", {"schema_version": "1.0"}, "'schema_version' of the SAE configuration is '1.0'"),
        ("topk", {"normaliser": {"kind": "rms", "scale": -1.0, "folded": True}}, "is not valid"),
        ("matryoshka", {"options": {"group_sizes": [4, 12, 23]}}, "sum to 39, not to the dictionary of 40 latents"),
        ("relu", {"options": {"penalty": -0.1}}, "option penalty = -0.1 is not a number >= 0"),
    ],
)
def test_a_configuration_that_does_not_fit_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str, change: dict[str, Any], words: str
) -> None:
    folder = written(architecture, tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(folder, words, capsys)


def test_an_sae_of_another_width_than_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is looked at once the SAE is sound; this one says that it belongs to `esm_small`, which is wider."""
    assert features(written("topk", tmp_path, plm="nowhere"), tmp_path) == 2
    assert "nowhere" in capsys.readouterr().err
    assert features(written("topk", tmp_path, plm="esm_small"), tmp_path) == 2
    assert "the SAE takes width 12" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def written(architecture: str, tmp_path: Path, plm: str = "nowhere") -> Path:
    """The folder of an SAE of a model that does not exist: what is found first is wrong with the SAE."""
    from plmsae.plms import load_plm

    revision = load_plm(plm).revision if plm == "esm_small" else "sha256:00"
    sae = generic_sae(architecture, plm=plm, plm_revision=revision, layer=3).folded(2.5)
    save(sae, tmp_path / plm)
    return tmp_path / plm


def features(folder: Path, tmp_path: Path) -> int:
    return cli.main(["features", "MKTAYIAKQR", "--model", str(folder), "--output", str(tmp_path / "out.csv")])


def refused(folder: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By what encodes with it and by what converts it, naming the file."""
    assert features(folder, folder.parent) == 3
    message = capsys.readouterr().err
    assert words in message
    assert str(folder) in message
    out = str(folder.parent / "out")
    assert cli.main(["export", str(folder), "--format", "saelens", "--output", out]) == 3
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
