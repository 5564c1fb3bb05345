"""Parameters, inputs and outputs of a Kubeflow task, without Kubeflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, write_manifest
from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json
from plmsae.stages import final_status
from plmsae.stages.catalog import stage, stages
from plmsae.stages.executor_input import ExecutorInput, knob_type, knob_value, local_path, resolve_params, run_task

TRAIN = stage("train_sae")


def task_values(**knobs: Any) -> dict[str, Any]:
    """Parameter values of a train_sae task with the defaults, changed."""
    defaults = TRAIN.params().model_dump(mode="json")
    values: dict[str, Any] = {name: defaults.pop(name) for name in TRAIN.knobs}
    return {**values, "params": canonical_json(defaults), "activations_sha256": "0" * 64, **knobs}


def executor_input(folder: Path, values: dict[str, Any], inputs: dict[str, Path], report: bool = False) -> str:
    names = ["output", "metrics", "summary", *(["report"] if report else [])]
    return json.dumps(
        {
            "inputs": {
                "parameterValues": values,
                "artifacts": {n: {"artifacts": [{"name": n, "uri": str(p)}]} for n, p in inputs.items()},
            },
            "outputs": {
                "parameters": {"manifest_sha256": {"outputFile": str(folder / "manifest_sha256")}},
                "artifacts": {n: {"artifacts": [{"name": n, "uri": str(folder / n), "metadata": {}}]} for n in names},
                "outputFile": str(folder / "executor_output.json"),
            },
        }
    )


def test_every_stage_takes_its_own_defaults() -> None:
    for item in stages().values():
        defaults = item.params().model_dump(mode="json")
        values: dict[str, Any] = {name: defaults.pop(name) for name in item.knobs}
        values = {name: knob_value(value) for name, value in values.items()}
        assert resolve_params(item, {**values, "params": canonical_json(defaults)}) == item.params()


def test_a_mapping_is_a_knob_as_json_and_keeps_its_integers() -> None:
    params = resolve_params(stage("sweep"), {"params": "{}", "grid": '{"k": [8, 16], "learning_rate": [0.5]}'})
    assert params.model_dump()["grid"] == {"k": [8, 16], "learning_rate": [0.5]}
    assert [type(k) for k in params.model_dump()["grid"]["k"]] == [int, int]
    for text, words in (("{k: [8]}", "'grid' is not JSON"), ("[8]", "grid"), ('{"kk": [8]}', "unknown parameter 'kk'")):
        with pytest.raises(UserError) as caught:
            resolve_params(stage("sweep"), {"params": "{}", "grid": text})
        assert words in str(caught.value)
        assert "'grid' of the run" in str(caught.value.where)


@given(st.integers(1, 2**31), st.floats(1e-6, 0.5), st.text(max_size=20))
def test_values_survive_the_json_text(seed: int, rate: float, notes: str) -> None:
    values = task_values(seed=float(seed))
    section = {**json.loads(values["params"]), "learning_rate": rate}
    params = resolve_params(TRAIN, {**values, "params": canonical_json(section)})
    assert params.model_dump()["seed"] == seed
    assert params.model_dump()["learning_rate"] == rate
    register = resolve_params(stage("register"), {"params": canonical_json({"notes": notes})})
    assert register.model_dump()["notes"] == notes


@pytest.mark.parametrize(
    ("knobs", "message", "where"),
    [
        ({"k": "many"}, "parameter 'train_sae.k' = 'many': should be a valid integer", "'k' of the run's parameters"),
        ({"k": 2.5}, "parameter 'train_sae.k' = 2.5", "'k' of the run's parameters"),
        ({"k": True}, "parameter 'train_sae.k' = True", "'k' of the run's parameters"),
        ({"architecture": "topp"}, "unknown architecture; did you mean 'topk'", "'architecture'"),
        ({"params": "{"}, "the parameters of 'train_sae' are not JSON", "train_sae_params"),
        ({"params": "[1]"}, "not a JSON object but [1]", "train_sae_params"),
        ({"params": None}, "the parameters of 'train_sae' are not JSON", "train_sae_params"),
        ({"params": '{"batch": 1}'}, "unknown parameter 'train_sae.batch'", "train_sae_params"),
        ({"params": '{"k": 8}'}, "parameter 'train_sae.k' is given twice: 8 and 32", "train_sae_params and 'k'"),
        ({"kk": 1}, "task 'train_sae' has no parameter 'kk'", ""),
    ],
)
def test_wrong_parameters_are_refused_in_words(knobs: dict[str, Any], message: str, where: str) -> None:
    with pytest.raises(UserError) as error:
        resolve_params(TRAIN, task_values(**knobs))
    assert message in error.value.problem
    assert where in (error.value.where or "")


def test_an_empty_text_is_null_only_where_null_is_allowed() -> None:
    ingest = stage("ingest")
    assert resolve_params(ingest, {"source": "a", "source_sha256": ""}).model_dump()["source_sha256"] is None
    with pytest.raises(UserError, match=r"ingest\.source"):
        resolve_params(ingest, {"source": ""})


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://bucket/a/b", "/s3/bucket/a/b"),
        ("gs://bucket/a", "/gcs/bucket/a"),
        ("minio://mlpipeline/v2/a", "/minio/mlpipeline/v2/a"),
        ("/tmp/a", "/tmp/a"),
        ("file:///tmp/a", "/tmp/a"),
    ],
)
def test_artifacts_are_where_the_launcher_puts_them(uri: str, path: str) -> None:
    assert local_path(uri) == Path(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"outputs": {}}', '{"outputs": {"artifacts": {"a": {}}}}'])
def test_a_broken_executor_input_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="executor input"):
        ExecutorInput.parse(text)


def some_output(folder: Path, kind: str) -> str:
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("x")
    manifest = Manifest(
        stage="register", kind=kind, params={}, inputs={}, source_files={}, environment={}, files=list_files(folder)
    )
    write_manifest(folder, manifest)
    return manifest_sha256(folder)


def test_an_input_must_be_what_its_producer_returned(tmp_path: Path) -> None:
    promote = stage("promote")
    right = some_output(tmp_path / "registration", "registration")
    inputs = {"registration": tmp_path / "registration"}

    def run(values: dict[str, Any], inputs: dict[str, Path] = inputs) -> None:
        run_task(promote, executor_input(tmp_path / "out", {"params": "{}", **values}, inputs), root=tmp_path)

    with pytest.raises(UserError, match="no checksum of its input 'registration'"):
        run({})
    with pytest.raises(DataError, match="not what its producer returned"):
        run({"registration_sha256": "0" * 64})
    with pytest.raises(UserError, match="got no input 'registration'"):
        run({"registration_sha256": right}, {})
    (tmp_path / "registration" / "data.txt").write_text("y")
    with pytest.raises(DataError, match="corrupted"):
        run({"registration_sha256": right})
    assert not (tmp_path / "out" / "output").exists()


def test_a_raw_file_must_be_named_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.fasta").write_text(">a\nMKV\n")
    text = executor_input(tmp_path / "out", {"params": "{}", "source": "a.fasta", "source_sha256": ""}, {})
    with pytest.raises(UserError, match="does not say which bytes"):
        run_task(stage("ingest"), text, root=tmp_path)
    text = executor_input(tmp_path / "out", {"params": "{}", "source": "a.fasta", "source_sha256": "1" * 64}, {})
    with pytest.raises(DataError, match="has sha256"):
        run_task(stage("ingest"), text, root=tmp_path)


def test_knobs_have_plain_types() -> None:
    for item in stages().values():
        for name in item.knobs:
            assert knob_type(item.params.model_fields[name].annotation) in (str, int, float, bool, list)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "SUCCEEDED", "pipelineTaskName": "t"}, "The run succeeded"),
        ({"state": "FAILED", "error": {"code": 1, "message": "task train-sae failed"}}, "task train-sae failed"),
        ({"state": "CANCELLED", "pipeline_job_resource_name": "r"}, "ended as CANCELLED"),
        ({}, "ended as UNKNOWN"),
    ],
)
def test_the_exit_task_says_how_the_run_ended(status: dict[str, Any], words: str, tmp_path: Path) -> None:
    text = json.dumps(
        {
            "inputs": {"parameterValues": {"status": status}},
            "outputs": {
                "artifacts": {"summary": {"artifacts": [{"name": "summary", "uri": str(tmp_path / "summary")}]}},
                "outputFile": str(tmp_path / "executor_output.json"),
            },
        }
    )
    assert final_status.main(["--executor-input", text]) == 0
    assert words in (tmp_path / "summary").read_text()
    assert json.loads((tmp_path / "executor_output.json").read_text())["parameterValues"] == {}
