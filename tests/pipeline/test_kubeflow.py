"""The pipeline as Kubeflow runs it, by KFP's own local runner: the same bytes as `dvc repro`, and its failures."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from plmsae.artifacts.manifest import manifest_sha256
from plmsae.cluster.sections import pipeline_arguments
from plmsae.params import ParamsFile
from plmsae.stages.catalog import stages, stages_of
from plmsae.stages.render import after_sweep
from tests.cluster.test_arguments import tasks as resolved
from tests.pipeline.conftest import Finished
from tests.pipeline.test_graph import compiled
from tests.stages.test_executor_input import executor_input
from tests.stages.test_sweep_pairs import handed_on
from tests.workspace import ROOT, call, environment

pytestmark = pytest.mark.slow


def run_pipeline(
    root: Path,
    arguments: dict[str, Any],
    *,
    check: bool = True,
    caching: bool = False,
    pipeline: str = "train",
    settings: Mapping[str, str] = MappingProxyType({}),
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Run a pipeline with `kfp.local` in a working folder."""
    job = {"pipeline": pipeline, "arguments": arguments, "pipeline_root": str(root / "kfp"), "caching": caching}
    file = root / ".home" / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    variables = {**environment(root), **settings, "PYTHONPATH": f"{root / 'src'}:{ROOT}"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.local_runner", str(file)],
        cwd=root,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and process.returncode:
        raise AssertionError(process.stdout[-6000:] + process.stderr[-6000:])
    return process


def outputs(root: Path, pipeline: str = "train", run: int = 0) -> dict[str, Path]:
    """Task -> its output folder in a run of a pipeline, by default the first; -1 is the last."""
    folder = sorted((root / "kfp").glob(f"plmsae-{pipeline}-*"))[run]
    return {path.parent.name: path for path in folder.rglob("output")}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def workspace(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, its outputs and checkpoints removed; its registry stays."""
    root = finished.copy_to(tmp_path_factory.mktemp("kubeflow") / "work")
    call(root, "rm", "-rf", "outputs")
    return root


@pytest.fixture(scope="module")
def arguments(workspace: Path) -> dict[str, Any]:
    return pipeline_arguments(ParamsFile(workspace / "params.yaml"))


@pytest.fixture(scope="module")
def ran(workspace: Path, arguments: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return run_pipeline(workspace, arguments, caching=True)


def test_the_bytes_are_those_of_dvc_repro(
    ran: subprocess.CompletedProcess[str], workspace: Path, finished: Finished
) -> None:
    found = outputs(workspace)
    for stage in stages_of("train").values():
        here = files(found[stage.id.replace("@", "-").replace("_", "-")])
        there = files(finished.root / stage.output)
        assert here.keys() == there.keys(), stage.id
        assert not [name for name in here if here[name] != there[name]], stage.id
    sae = found["train-sae"] / "sae" / "sae.safetensors"
    assert sae.read_bytes() == (finished.root / "outputs/train_sae/sae/sae.safetensors").read_bytes()


def test_the_ui_gets_metrics_summaries_and_reports(ran: subprocess.CompletedProcess[str], workspace: Path) -> None:
    for task, output in outputs(workspace).items():
        written = json.loads((output.parent / "executor_output.json").read_text(encoding="utf-8"))
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        assert written["artifacts"]["metrics"]["artifacts"][0]["metadata"] == metrics, task
        assert (output.parent / "summary").read_text() == (output / "summary.md").read_text()
        manifest = hashlib.sha256((output / "manifest.json").read_bytes()).hexdigest()
        assert written["parameterValues"] == {"manifest_sha256": manifest}
        assert not list(output.parent.glob(".*")), "nothing unfinished stays"
    for task in ("validate", "register"):
        page = (outputs(workspace)[task].parent / "report").read_text(encoding="utf-8")
        assert page.lower().startswith("<!doctype html")
        assert "https://" not in page.split("<body")[0], "the UI shows it in a frame without network"
    outcome = (outputs(workspace)["promote"].parents[1] / "report-outcome" / "summary").read_text(encoding="utf-8")
    assert "succeeded" in outcome


def test_a_second_run_is_cached_but_for_side_effects(
    ran: subprocess.CompletedProcess[str], workspace: Path, arguments: dict[str, Any]
) -> None:
    again = run_pipeline(workspace, arguments, caching=True)
    started = {line.split()[0] for line in again.stdout.splitlines() if line.strip().endswith(" started")}
    assert started == {"register", "promote"}


def test_the_task_of_a_sweep_gives_what_the_command_gives(
    ran: subprocess.CompletedProcess[str], workspace: Path, swept: Path, tmp_path: Path
) -> None:
    """With the parameters that the backend resolves for it, on outputs of the training pipeline's tasks."""
    chosen = ["ingest", "extract_activations", "sweep", "sweep_pairs"]
    arguments = pipeline_arguments(ParamsFile(workspace / "params.yaml"), chosen)
    assert arguments["grid"] == '{"k":[8,16],"seed":[0,1]}'
    specification = json_format.ParseDict(compiled("sweep"), pipeline_spec_pb2.PipelineSpec())
    of_tasks = dict(resolved(specification, arguments))
    (pair,) = handed_on(tmp_path, of_tasks["sweep_pairs"])["pairs"]
    values = {**of_tasks["sweep"], "grid": pair["grid"], "params": pair["params"]}
    done = outputs(workspace)
    inputs = {port.name: done[port.source.replace("_", "-")] for port in stages()["sweep"].inputs}
    values |= {f"{name}_sha256": manifest_sha256(folder) for name, folder in inputs.items()}
    task = workspace / "task"
    call(workspace, "plmsae", "run", "sweep", "--executor-input", executor_input(task, values, inputs))
    assert files(task / "output") == files(swept)


@pytest.mark.long
def test_a_sweep_evaluates_and_registers_the_best_of_its_members(
    ran: subprocess.CompletedProcess[str], workspace: Path, swept: Path
) -> None:
    """Ingest, validation and extraction come from the cache of the training pipeline."""
    after = [stage.id for stage in after_sweep()]
    chosen = ["ingest", "validate", "extract_activations", "sweep", "sweep_pairs", *after]
    arguments = pipeline_arguments(ParamsFile(workspace / "params.yaml"), chosen)
    assert arguments["grid"] == '{"k":[8,16],"seed":[0,1]}'
    process = run_pipeline(workspace, arguments, caching=True, pipeline="sweep")
    started = [line.split()[0] for line in process.stdout.splitlines() if line.strip().endswith(" started")]
    assert started[:2] == ["sweep_pairs", "sweep"]
    assert set(started) == {"sweep_pairs", "sweep", *after, "sweep_report"}
    found = outputs(workspace, "sweep")
    assert files(found["sweep"]) == files(swept)
    registration = json.loads((found["register"] / "registration.json").read_text())
    weights = (found["sweep"] / "sae" / "sae.safetensors").read_bytes()
    assert registration["sae_sha256"] == hashlib.sha256(weights).hexdigest()
    models = json.loads(call(workspace, "plmsae", "models", "--json").stdout)
    (model,) = [item for item in models if item["version"] == registration["version"]]
    assert model["metrics"]["train_sae.num_members"] == 4
    assert "candidate" in model["aliases"]


def test_new_bytes_under_the_old_name_are_not_served_from_the_cache(
    ran: subprocess.CompletedProcess[str], workspace: Path, arguments: dict[str, Any]
) -> None:
    """Only the checksum of the source differs; the file does not hold it, so `ingest` must run, and refuse."""
    process = run_pipeline(workspace, {**arguments, "source_sha256": "0" * 64}, check=False, caching=True)
    assert process.returncode != 0
    assert "ingest started" not in process.stdout
    assert f"has sha256 {arguments['source_sha256']}, not {'0' * 64}" in process.stdout


def test_a_wrong_type_fails_in_words_and_the_exit_task_reports(
    ran: subprocess.CompletedProcess[str], workspace: Path, arguments: dict[str, Any]
) -> None:
    broken = json.dumps({**json.loads(arguments["train_sae_params"]), "batch_size": "many"})
    process = run_pipeline(workspace, {**arguments, "train_sae_params": broken}, check=False, caching=True)
    assert process.returncode != 0
    assert "parameter 'train_sae.batch_size' = 'many'" in process.stdout
    assert "where: train_sae_params of the run's parameters" in process.stdout
    assert "Traceback" not in process.stdout
    assert '"state": "FAILED"' in process.stdout
    assert "evaluate@fidelity started" not in process.stdout
