"""From a name in the registry to a version, its verified files, and the parameters of its activations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256, verify
from plmsae.errors import DataError, UserError
from plmsae.params import ParamsFile
from plmsae.registry.connection import connect
from plmsae.registry.described import describe
from plmsae.registry.register import register
from plmsae.stages import pull, resolve
from plmsae.stages.catalog import load_params, stage
from plmsae.stages.execute import execute
from plmsae.stages.executor_input import resolve_params, run_task
from plmsae.stages.extract_activations import ExtractActivationsParams
from plmsae.stages.pull import PullParams
from plmsae.stages.resolve import ResolveParams
from plmsae.stages.spec import StageResult
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import LAYER, TRAINING, small_sae, write_outputs
from tests.stages.test_executor_input import executor_input
from tests.workspace import ROOT

__all__ = ["empty_registry", "root"]  # fixtures
NAME = f"plmsae.esm_small.layer{LAYER}.topk"


@pytest.fixture
def registered(root: Path) -> Path:
    register(write_outputs(root), root)
    return root


def resolved(root: Path, model: str | None = f"models:/{NAME}@candidate", **asked: Any) -> StageResult:
    return execute(resolve.STAGE, ResolveParams(model=model, extract_activations=asked), root=root)


def package(root: Path, version: int = 1) -> Path:
    found = sorted((root / ".plmsae" / "mlflow" / "artifacts").rglob("package"), key=lambda path: path.stat().st_ctime)
    return found[version - 1]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("model", [f"models:/{NAME}@candidate", f"models:/{NAME}/1"])
def test_an_alias_and_a_number_are_the_same_version_and_give_equal_values(registered: Path, model: str) -> None:
    values = resolved(registered, model, dtype="float32", store="s3://b/a", seed=7).values
    config = small_sae().config
    assert values["uri"] == f"models:/{NAME}/1"
    assert values["package_sha256"] == manifest_sha256(package(registered))
    assert (values["plm"], values["layer"], values["store"], values["seed"]) == ("esm_small", LAYER, "s3://b/a", 7)
    assert json.loads(str(values["extract_activations_params"])) == {
        "also": [],
        "dtype": "float32",
        "hook": "residual",
        "plm_revision": config.plm_revision,
        "share": None,
        "shared": None,
    }
    assert {value.name: value.kind for value in resolve.STAGE.values} == {n: type(v) for n, v in values.items()}
    record = json.loads((registered / "outputs" / "resolve" / "version.json").read_text())
    assert (record["name"], record["version"], record["normaliser"]["kind"]) == (NAME, 1, "rms")


def test_the_values_are_parameters_of_the_extraction_whatever_params_yaml_says(registered: Path) -> None:
    """`params.yaml` is that of another layer; the SAE's decides, the rest comes from the file."""
    file = ParamsFile(ROOT / "params.yaml", ["extract_activations.layer=1", "extract_activations.dtype=float16"])
    params = load_params(file, resolve.STAGE).model_dump() | {"model": f"models:/{NAME}/1"}
    values = execute(resolve.STAGE, ResolveParams(**params), root=registered).values
    names = ("plm", "layer", "store", "seed")
    task = {**{name: values[name] for name in names}, "params": values["extract_activations_params"]}
    found = resolve_params(stage("extract_activations"), task)
    assert isinstance(found, ExtractActivationsParams)
    assert (found.layer, found.dtype, found.also, found.store) == (LAYER, "float16", [], None)
    everything = load_params(file, stage("extract_activations")).model_dump()
    config = small_sae().config
    assert found.model_dump() == everything | {"layer": LAYER, "plm_revision": config.plm_revision}


@pytest.mark.parametrize(
    ("name", "value"),
    [("plm", "other"), ("layer", 1), ("hook", "mlp"), ("plm_revision", "x"), ("also", [{"layer": 1}])],
)
def test_another_place_than_the_sae_s_is_refused(registered: Path, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"is evaluated with {name} .*, not ") as caught:
        resolved(registered, **{name: value})
    assert caught.value.where == f"resolve.extract_activations.{name}"
    resolved(registered, layer=LAYER, plm="esm_small", hook="residual", also=[], share=None)


def test_the_file_s_own_place_is_not_handed_on_but_one_that_is_written_for_the_sae_is() -> None:
    plain = load_params(ParamsFile(ROOT / "params.yaml"), resolve.STAGE).model_dump()["extract_activations"]
    assert not {"plm", "plm_revision", "layer", "hook", "also", "share", "shared"} & set(plain)
    assert {"dtype", "store", "seed", "device"} <= set(plain)
    written = ParamsFile(ROOT / "params.yaml", ["resolve.extract_activations.layer=1"])
    assert load_params(written, resolve.STAGE).model_dump()["extract_activations"]["layer"] == 1
    with pytest.raises(UserError, match="unknown parameter"):
        load_params(ParamsFile(ROOT / "params.yaml", ["resolve.extract_activations.lair=1"]), resolve.STAGE)


def test_an_sae_that_does_not_take_raw_activations_is_refused(root: Path) -> None:
    sae = small_sae(normaliser={"kind": "rms", "scale": 2.0, "folded": False})
    register(write_outputs(root, sae=sae), root)
    with pytest.raises(UserError, match=r"takes activations divided by 2, not raw ones"):
        resolved(root)


def test_what_is_not_there_is_named(registered: Path) -> None:
    with pytest.raises(UserError, match="no alias 'champion'"):
        resolved(registered, f"models:/{NAME}@champion")
    with pytest.raises(UserError, match="no SAE is champion yet"):
        resolved(registered, None)
    with pytest.raises(UserError, match="has no version 4"):
        resolved(registered, f"models:/{NAME}/4")
    with connect(registered) as client:
        client.set_registered_model_alias(NAME, "champion", "1")
    assert resolved(registered, None).values["uri"] == f"models:/{NAME}/1"


def test_a_damaged_description_is_found_without_the_weights(registered: Path) -> None:
    (package(registered) / "sae.safetensors").unlink()
    assert describe(f"models:/{NAME}/1", registered).config == small_sae().config
    config = package(registered) / "config.json"
    config.write_text(config.read_text().replace('"k": 8', '"k": 9'))
    with pytest.raises(DataError, match=r"'config\.json' is corrupted"):
        describe(f"models:/{NAME}/1", registered)
    (package(registered) / MANIFEST_NAME).unlink()
    with pytest.raises(DataError, match="holds no SAE package"):
        describe(f"models:/{NAME}/1", registered)


def test_an_alias_that_moved_gives_other_values(registered: Path) -> None:
    before = resolved(registered).values
    register(write_outputs(registered, seed=1), registered)
    after = resolved(registered).values
    assert (before["uri"], after["uri"]) == (f"models:/{NAME}/1", f"models:/{NAME}/2")
    assert before["package_sha256"] != after["package_sha256"]
    assert before["extract_activations_params"] == after["extract_activations_params"], "met again in the cache"


def pulled(root: Path, values: Any, **changes: Any) -> StageResult:
    params = {"uri": values["uri"], "package_sha256": values["package_sha256"], **changes}
    return execute(pull.STAGE, PullParams(**params), root=root)


def test_the_artifact_holds_what_the_registry_holds_and_is_an_sae(registered: Path) -> None:
    result = pulled(registered, resolved(registered).values)
    output = registered / "outputs" / "pull"
    assert files(output / "sae") == files(package(registered))
    assert verify(output).kind == "sae"
    assert result.values == {"name": NAME, "version": 1}
    assert json.loads((output / "metrics.json").read_text()) == TRAINING, "those of the training, for the report"
    assert not list(output.rglob(".*")), "nothing unfinished stays"
    again = registered / "again"
    execute(pull.STAGE, PullParams(uri=f"models:/{NAME}/1"), root=registered, output=again)
    assert files(again / "sae") == files(output / "sae")


def test_a_pull_is_refused_if_the_files_are_not_those_that_were_meant(registered: Path) -> None:
    values = resolved(registered).values
    with pytest.raises(UserError, match="no registered version is named"):
        pulled(registered, values, uri=None)
    with pytest.raises(DataError, match=f"has sha256 {values['package_sha256']}, not {64 * '0'}"):
        pulled(registered, values, package_sha256=64 * "0")
    weights = package(registered) / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"'sae\.safetensors' is corrupted"):
        pulled(registered, values)
    assert not (registered / "outputs" / "pull").exists()


@pytest.mark.parametrize(
    "uri", [f"models:/{NAME}@champion", NAME, f"models:/{NAME}", f"models:/{NAME}/0", "models://1"]
)
def test_an_alias_cannot_be_pulled_into_the_cache(uri: str) -> None:
    with pytest.raises(ValueError, match="models:/NAME/VERSION"):
        PullParams(uri=uri)


def test_as_tasks_they_hand_on_values_of_the_declared_types(registered: Path, tmp_path: Path) -> None:
    folder = tmp_path / "task"
    text = json.loads(executor_input(folder, {"model": f"models:/{NAME}@candidate", "params": "{}"}, {}))
    for value in resolve.STAGE.values:
        text["outputs"]["parameters"][value.name] = {"outputFile": str(folder / value.name)}
    run_task(resolve.STAGE, json.dumps(text), root=registered)
    written = json.loads((folder / "executor_output.json").read_text())
    values = written["parameterValues"]
    assert (values["layer"], values["seed"], values["store"]) == (LAYER, 0, "")
    assert (folder / "layer").read_text() == str(LAYER)
    assert (folder / "uri").read_text() == values["uri"] == f"models:/{NAME}/1"
    metadata = written["artifacts"]["output"]["artifacts"][0]["metadata"]
    assert metadata["uri"] == values["uri"]
    assert metadata["manifest_sha256"] == values["manifest_sha256"]
