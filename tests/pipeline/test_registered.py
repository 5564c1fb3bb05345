"""The pipelines that start from a registered SAE: their graphs, and whole runs by KFP's own local runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae.cluster.sections import pipeline_arguments
from plmsae.params import ParamsFile
from plmsae.stages.catalog import stages
from plmsae.stages.components import task_name
from tests.pipeline.conftest import Finished
from tests.pipeline.test_graph import compiled, kfp_ports, tasks
from tests.pipeline.test_kubeflow import files, outputs, run_pipeline
from tests.workspace import ROOT, call

EVALUATIONS = ("fidelity", "concepts", "baselines", "amortisation", "probes", "patterns", "clustering", "absorption")
STAGES = {
    "evaluate": (
        "ingest",
        "validate",
        "extract_activations",
        "resolve",
        "pull",
        *(f"evaluate@{name}" for name in EVALUATIONS),
        "report",
    ),
    "steer": ("ingest", "resolve", "pull", "steer", "report"),
}
LEFT_OUT = {
    "evaluate": {("report", "controls"), ("report", "layers"), ("report", "steering")},
    "steer": {("steer", "activations"), ("report", "activations")}
    | {("report", name) for name in (*EVALUATIONS, "controls", "layers")},
}


@pytest.mark.parametrize("pipeline", STAGES)
def test_every_port_is_connected_but_the_optional_ones_that_are_named_here(pipeline: str) -> None:
    specification = compiled(pipeline)
    chosen = [stages()[name] for name in STAGES[pipeline]]
    assert set(tasks(specification)) == {task_name(stage) for stage in chosen}
    declared = {
        ("pull" if port.source == "train_sae" else task_name(stages()[port.source]), task_name(stage), port.name)
        for stage in chosen
        for port in stage.inputs
        if (stage.id, port.name) not in LEFT_OUT[pipeline]
    }
    assert kfp_ports(specification) == declared
    for producer, consumer, port in declared:
        checksum = tasks(specification)[consumer]["inputs"]["parameters"][f"{port}_sha256"]["taskOutputParameter"]
        assert checksum == {"outputParameterKey": "manifest_sha256", "producerTask": producer}


@pytest.mark.parametrize("pipeline", STAGES)
def test_what_looks_up_is_never_cached_and_nobody_reads_its_artifact(pipeline: str) -> None:
    """Kubeflow's cache goes by the identity of artifacts: behind a task that always runs it would never be met."""
    specification = compiled(pipeline)
    cached = {name for name, task in tasks(specification).items() if task["cachingOptions"].get("enableCache")}
    assert cached == {task_name(stages()[name]) for name in STAGES[pipeline]} - {"resolve"}
    assert "resolve" not in {producer for producer, _, _ in kfp_ports(specification)}


def test_the_place_of_the_activations_is_the_sae_s() -> None:
    specification = compiled("evaluate")
    given = tasks(specification)["extract-activations"]["inputs"]["parameters"]
    for name, key in {
        "plm": "plm",
        "layer": "layer",
        "store": "store",
        "seed": "seed",
        "params": "extract_activations_params",
    }.items():
        assert given[name]["taskOutputParameter"] == {"outputParameterKey": key, "producerTask": "resolve"}
    form = specification["root"]["inputDefinitions"]["parameters"]
    assert not {"plm", "layer", "store", "extract_activations_params", "pull_params"} & set(form)
    section = json.loads(form["resolve_params"]["defaultValue"])["extract_activations"]
    assert not {"plm", "plm_revision", "layer", "hook", "also"} & set(section)


def test_all_evaluations_of_an_sae_may_run_at_once() -> None:
    specification = compiled("evaluate")
    for name in EVALUATIONS:
        before = set(tasks(specification)[f"evaluate-{name}"]["dependentTasks"])
        assert before == {"ingest", "extract-activations", "pull"}


@pytest.mark.parametrize("pipeline", STAGES)
def test_the_packages_run_as_nobody_with_time_limits(pipeline: str) -> None:
    specification, platform = yaml.safe_load_all((ROOT / "pipelines" / f"{pipeline}.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(specification["deploymentSpec"]["executors"])
    assert all(int(item["activeDeadlineSeconds"]) > 0 for item in executors.values())
    assert all(item["securityContext"]["runAsNonRoot"] for item in executors.values())


@pytest.fixture(scope="module")
def workspace(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with its registry, and without its outputs."""
    root = finished.copy_to(tmp_path_factory.mktemp("registered") / "work")
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints")
    return root


def arguments(workspace: Path, pipeline: str, *overrides: str) -> dict[str, Any]:
    """As `plmsae submit` makes them."""
    own = [name for name in STAGES[pipeline] if name not in ("pull", "extract_activations")]
    return pipeline_arguments(ParamsFile(workspace / "params.yaml", overrides), own)


def started(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.strip().endswith(" started")]


@pytest.mark.long
def test_steering_the_champion_ends_in_a_page(workspace: Path, finished: Finished, champion: str) -> None:
    given = arguments(workspace, "steer")
    assert given["model"] == "", "the only champion"
    process = run_pipeline(workspace, given, pipeline="steer", caching=True)
    assert set(started(process.stdout)) == set(STAGES["steer"])
    found = outputs(workspace, "steer")
    here, there = files(found["steer"]), files(finished.root / "outputs" / "steer")
    assert here.keys() == there.keys()
    assert {name for name in here if here[name] != there[name]} == {"manifest.json"}, "the same numbers"
    page = (found["report"].parent / "report").read_text(encoding="utf-8")
    assert '<section id="steering">' in page
    written = json.loads((found["pull"].parent / "executor_output.json").read_text())
    metadata = written["artifacts"]["output"]["artifacts"][0]["metadata"]
    assert f"models:/{metadata['name']}@champion" == champion
    again = run_pipeline(workspace, {**given, "model": champion}, pipeline="steer", caching=True)
    assert started(again.stdout) == ["resolve"], "the version and its bytes are the same"
    other = run_pipeline(workspace, {**given, "latent": 1}, pipeline="steer", caching=True, check=False)
    assert set(started(other.stdout)) <= {"resolve", "steer", "report"}


@pytest.mark.long
def test_another_layer_than_the_sae_s_ends_before_anything_is_computed(workspace: Path) -> None:
    given = arguments(workspace, "evaluate", "resolve.extract_activations.layer=1")
    process = run_pipeline(workspace, given, pipeline="evaluate", caching=True, check=False)
    assert process.returncode != 0
    assert "is evaluated with layer 2, not 1" in process.stdout
    assert "Traceback" not in process.stdout
    assert not {"extract_activations", "pull"} & set(started(process.stdout))


@pytest.mark.long
def test_evaluating_the_champion_gives_the_numbers_of_its_training_pipeline(
    workspace: Path, finished: Finished
) -> None:
    # A file of another layer: the SAE's is taken.
    given = arguments(workspace, "evaluate", "extract_activations.layer=1")
    process = run_pipeline(workspace, given, pipeline="evaluate", caching=True)
    # What the runs before this one have computed comes from the cache.
    assert set(started(process.stdout)) >= set(STAGES["evaluate"]) - {"ingest", "validate", "pull"}
    found = outputs(workspace, "evaluate", run=-1)
    for name in ("fidelity", "concepts", "baselines", "amortisation"):
        here, there = files(found[f"evaluate-{name}"]), files(finished.root / "outputs" / "evaluate" / name)
        assert {file for file in here if here[file] != there[file]} == {"manifest.json"}, name
    page = (found["report"].parent / "report").read_text(encoding="utf-8")
    assert all(f'<section id="{name}">' in page for name in EVALUATIONS)
    assert '<section id="controls">' not in page
    again = run_pipeline(workspace, given, pipeline="evaluate", caching=True)
    assert started(again.stdout) == ["resolve"], "an unchanged evaluation computes nothing"
