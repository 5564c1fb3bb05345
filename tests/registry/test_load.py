"""Loading and pulling: the right bytes, nothing executed, and a message for everything that is wrong."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import plmsae
from plmsae.errors import DataError, UserError
from plmsae.registry.connection import connect
from plmsae.registry.load import champion_uri, load, pull
from plmsae.registry.register import register
from tests.registry.outputs import small_sae, write_outputs

NAME = "plmsae.esm_small.layer3.topk"


@pytest.fixture
def registered(root: Path) -> Path:
    register(write_outputs(root), root)
    return root


def package_in_registry(root: Path) -> Path:
    return next((root / ".plmsae" / "mlflow" / "artifacts").rglob("package"))


@pytest.mark.parametrize("uri", [f"models:/{NAME}@candidate", f"models:/{NAME}/1"])
def test_a_registered_sae_is_the_one_that_was_trained(registered: Path, uri: str) -> None:
    sae, trained = plmsae.load(uri), small_sae()
    assert sae.config == trained.config
    for name, tensor in trained.state_dict().items():
        assert torch.equal(sae.state_dict()[name], tensor)
    assert not sae.training
    assert sae.concepts == {5: "Zinc finger <C2H2>"}


def test_every_kind_of_folder_loads(registered: Path) -> None:
    pulled = pull(f"models:/{NAME}@candidate", registered / "pulled")
    x = torch.randn(5, small_sae().config.d_model, generator=torch.Generator().manual_seed(0))
    expected = small_sae().encode(x)
    for folder in (pulled.folder, registered / "outputs" / "train_sae", registered / "outputs" / "train_sae" / "sae"):
        assert torch.equal(load(folder).encode(x), expected)
        assert torch.equal(load(str(folder)).encode(x), expected)


def test_nothing_of_the_registry_is_executed(registered: Path) -> None:
    model = package_in_registry(registered).parents[1]
    canary = registered / "canary"
    attack = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
    (model / "model.py").write_text(attack)

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (attack,)

    (model / "python_model.pkl").write_bytes(pickle.dumps(Bomb()))
    (model / "MLmodel").write_text("flavors: {python_function: {python_model: python_model.pkl}}")
    load(f"models:/{NAME}/1")
    pull(f"models:/{NAME}/1", registered / "pulled")
    assert not canary.exists()
    (package_in_registry(registered) / "python_model.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"'python_model\.pkl' is not in the manifest"):
        load(f"models:/{NAME}/1")
    assert not canary.exists()


def test_mlflows_own_loader_agrees_and_needs_no_pickle(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow

    x = torch.randn(4, small_sae().config.d_model, generator=torch.Generator().manual_seed(1))
    with connect(registered):
        model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
        z = model.predict(x.numpy())
        assert model.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, x.shape[1])
        with pytest.raises(mlflow.exceptions.MlflowException):
            model.predict(x[:, :-1].numpy())
    assert torch.equal(torch.from_numpy(z), small_sae().encode(x))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add"])
def test_a_damaged_registry_is_noticed(registered: Path, damage: str) -> None:
    weights = package_in_registry(registered) / "sae.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:100])
    elif damage == "remove":
        weights.unlink()
    else:
        (weights.parent / "extra").touch()
    with pytest.raises(DataError, match=f"version 1 of '{NAME}'"):
        load(f"models:/{NAME}/1")
    with pytest.raises(DataError):
        pull(f"models:/{NAME}/1", registered / "pulled")
    assert not (registered / "pulled").exists()
    assert not list(registered.glob(".pulled*"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/plmsae.esm_small.layer3.topkk@candidate", f"did you mean '{NAME}'?"),
        ("models:/other/1", f"known: '{NAME}'"),
        (f"models:/{NAME}@candidat", "did you mean 'candidate'?"),
        (f"models:/{NAME}@champion", "known: 'candidate'"),
        (f"models:/{NAME}/7", "it has: 1"),
        (f"models:/{NAME}/latest", "does not say which version"),
        (f"models:/{NAME}", "does not say which version"),
        ("models:/", "does not say which version"),
        ("nowhere", "neither a folder nor a registered SAE"),
    ],
)
def test_what_does_not_exist_is_a_user_error_with_the_way_out(registered: Path, uri: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(uri)
    assert message in str(caught.value)


def test_a_version_that_plmsae_did_not_register_is_refused(registered: Path) -> None:
    with connect(registered) as client:
        client.create_registered_model("foreign")
        client.create_model_version("foreign", source=str(registered))
    with pytest.raises(DataError, match="not registered by plmsae"):
        load("models:/foreign/1")


def test_pull_neither_overwrites_nor_merges(registered: Path) -> None:
    target = registered / "mine"
    target.mkdir()
    pull(f"models:/{NAME}/1", target)
    before = sorted(target.iterdir())
    assert {"sae.safetensors", "config.json", "MODEL_CARD.md", "metrics.json", "manifest.json"} <= {
        path.name for path in before
    }
    with pytest.raises(UserError, match="exists already"):
        pull(f"models:/{NAME}/1", target)
    assert sorted(target.iterdir()) == before
    assert pull(f"models:/{NAME}/1").folder == Path(f"{NAME}-v1")


def test_a_folder_that_was_moved_still_finds_its_files(registered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = registered.with_name("moved")
    shutil.move(registered, moved)
    monkeypatch.chdir(moved)
    assert load(f"models:/{NAME}@candidate").config == small_sae().config
    assert register(write_outputs(moved, seed=1), moved).version == 2
    assert load(f"models:/{NAME}@candidate").config == small_sae(1).config
    assert not registered.exists()


def test_the_only_champion(registered: Path) -> None:
    with pytest.raises(UserError, match="no SAE is champion yet"):
        champion_uri()
    with connect() as client:
        client.set_registered_model_alias(NAME, "champion", "1")
    assert champion_uri() == f"models:/{NAME}@champion"
    with connect() as client:
        client.create_registered_model("plmsae.other.layer1.topk")
        source = client.get_model_version(NAME, "1").source
        client.create_model_version("plmsae.other.layer1.topk", source=source)
        client.set_registered_model_alias("plmsae.other.layer1.topk", "champion", "1")
    with pytest.raises(UserError, match="several") as caught:
        champion_uri()
    assert "models:/plmsae.other.layer1.topk@champion" in str(caught.value)


def test_a_folder_loads_without_mlflow(registered: Path) -> None:
    script = (
        "import sys, plmsae; plmsae.load('outputs/train_sae'); "
        "sys.exit(sorted({'mlflow', 'pandas', 'transformers'} & set(sys.modules)) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
