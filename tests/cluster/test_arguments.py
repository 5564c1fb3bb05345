"""What a submitted run hands to every stage is what the same `params.yaml` gives it on a laptop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from plmsae import cli
from plmsae.params import ParamsFile, params_sha256
from plmsae.stages.catalog import load_params, stages, stages_of
from plmsae.stages.executor_input import resolve_params
from tests.cluster.conftest import ROOT, SOURCE, committed
from tests.cluster.kfp_server import KfpServer
from tests.cluster.oci_registry import Registry

CHANGES = (
    "train_sae.k=16",
    "train_sae.aux_k=null",
    "train_sae.learning_rate=1.0e-4",
    "extract_activations.layer=2",
    "evaluate.concepts.thresholds=[0.5]",
    'register.notes="a \\"quoted\\" note, 100 %"',
    *(f"{section}.seed=9007199254740991" for section in ("ingest", "extract_activations", "train_sae")),
)


def plain(value: Any) -> Any:
    """A protobuf value as KFP's launcher writes it: every number is a double, and whole ones lose their point."""
    return json_format.MessageToDict(value)


def tasks(spec: pipeline_spec_pb2.PipelineSpec, arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage id, parameter values) of every task that runs a stage, as the backend would resolve them."""
    declared = spec.root.input_definitions.parameters
    defaults = {name: plain(item.default_value) for name, item in declared.items() if item.HasField("default_value")}
    executors = json_format.MessageToDict(spec.deployment_spec)["executors"]

    def walk(dag: Any, given: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for task in dag.tasks.values():
            values = {}
            for name, source in task.inputs.parameters.items():
                if source.component_input_parameter:
                    # What comes from a task, or from a loop's item, is known to the run only.
                    if source.component_input_parameter in given:
                        values[name] = given[source.component_input_parameter]
                elif source.HasField("runtime_value"):
                    values[name] = plain(source.runtime_value.constant)
            component = spec.components[task.component_ref.name]
            if component.HasField("dag"):
                yield from walk(component.dag, values)
                continue
            command = executors[component.executor_label]["container"]["command"]
            if command[:2] == ["plmsae", "run"]:
                yield command[2], values

    yield from walk(spec.root.dag, {**defaults, **arguments})


@pytest.mark.parametrize("changes", [(), CHANGES])
def test_every_stage_of_a_run_gets_the_parameters_of_the_file(
    kfp: KfpServer, registry: Registry, package_file: Path, changes: tuple[str, ...]
) -> None:
    options = [*SOURCE, *(item for change in changes for item in ("--set", change))]
    command = ["submit", "train", "--host", kfp.host, "--package", str(package_file)]
    assert cli.main([*command, "--params", str(ROOT / "params.yaml"), *options]) == 0
    (run,) = kfp.state.runs.values()
    (package,) = kfp.state.packages.values()
    spec = json_format.ParseDict(next(yaml.safe_load_all(package)), pipeline_spec_pb2.PipelineSpec())
    got = dict(tasks(spec, run["runtime_config"]["parameters"]))
    file = ParamsFile(ROOT / "params.yaml", options[1::2])
    assert set(got) == set(stages_of("train"))
    for stage_id, values in got.items():
        stage = stages_of("train")[stage_id]
        params = resolve_params(stage, values)
        assert params == file.load(stage.params, stage.section), stage_id
        assert params_sha256(params) == params_sha256(file.load(stage.params, stage.section)), stage_id


@pytest.fixture(scope="module")
def sweep_file(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("package") / "sweep.yaml"
    file.write_text(committed("sweep", image), encoding="utf-8")
    return file


def submit_sweep(kfp: KfpServer, sweep_file: Path, *changes: str) -> int:
    options = [*SOURCE, *(item for change in changes for item in ("--set", change))]
    command = ["submit", "sweep", "--host", kfp.host, "--package", str(sweep_file)]
    return cli.main([*command, "--params", str(ROOT / "params.yaml"), *options])


@pytest.mark.usefixtures("registry")
def test_a_sweep_gets_its_grid_and_what_its_members_inherit(kfp: KfpServer, sweep_file: Path) -> None:
    changes = ("train_sae.k=16", "train_sae.tokens=1000", "sweep.train_sae.tokens=2000", "sweep.grid={seed: [0, 1]}")
    assert submit_sweep(kfp, sweep_file, *changes) == 0
    (run,) = kfp.state.runs.values()
    (package,) = kfp.state.packages.values()
    spec = json_format.ParseDict(next(yaml.safe_load_all(package)), pipeline_spec_pb2.PipelineSpec())
    got = dict(tasks(spec, run["runtime_config"]["parameters"]))
    file = ParamsFile(ROOT / "params.yaml", [*SOURCE[1::2], *changes])
    assert "sweep" in got
    assert "train_sae" not in got
    laid_out = resolve_params(stages()["sweep_pairs"], got["sweep_pairs"])
    report = resolve_params(stages()["sweep_report"], got["sweep_report"])
    for stage_id, values in got.items():
        stage = stages()[stage_id]
        if stage_id in ("extract_activations", "sweep", "sweep_pairs", "sweep_report"):
            continue
        assert params_sha256(resolve_params(stage, values)) == params_sha256(load_params(file, stage)), stage_id
    (only,) = laid_out.pairs()  # type: ignore[attr-defined]
    assert report.pairs() == [only]  # type: ignore[attr-defined]
    assert only.sweep == load_params(file, stages()["sweep"])
    members = only.sweep.members()
    assert [(member.k, member.tokens, member.seed) for member in members.values()] == [(16, 2000, 0), (16, 2000, 1)]


@pytest.mark.usefixtures("registry")
def test_a_sweep_over_layers_and_architectures_is_laid_out_as_it_was_asked_for(
    kfp: KfpServer, sweep_file: Path
) -> None:
    changes = ("sweep_pairs.layers=[2, 3]", "sweep_pairs.architectures=[topk, relu]", "train_sae.tokens=1000")
    assert submit_sweep(kfp, sweep_file, *changes, "sweep.grid={k: [8, 16], penalty: [0.1]}") == 0
    (run,) = kfp.state.runs.values()
    (package,) = kfp.state.packages.values()
    spec = json_format.ParseDict(next(yaml.safe_load_all(package)), pipeline_spec_pb2.PipelineSpec())
    got = dict(tasks(spec, run["runtime_config"]["parameters"]))
    found = resolve_params(stages()["sweep_pairs"], got["sweep_pairs"]).pairs()  # type: ignore[attr-defined]
    shown = [(pair.layer, pair.architectures, list(pair.sweep.members())) for pair in found]
    assert shown == [
        (layer, (name,), members)
        for layer in (2, 3)
        for name, members in (("topk", ["k8", "k16"]), ("relu", ["relu-penalty0.1"]))
    ]
    assert {member.tokens for pair in found for member in pair.sweep.members().values()} == {1000}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sweep.grid={kk: [1]}", "unknown parameter 'kk'"),
        ("sweep.grid={penalty: [0.1]}", "none of topk takes 'penalty'"),
        ("sweep_pairs.layers=[1, 1]", "1 stands twice"),
        ("sweep_pairs.architectures=[topkk]", "topkk"),
        ("steer.latent=3", "no stage that reads 'steer.latent'"),
        ("train_sae.sequences=mine.parquet", "'sweep.train_sae.sequences' = 'mine.parquet' is of this machine"),
    ],
)
def test_a_sweep_that_cannot_work_is_refused_before_anything_is_created(
    kfp: KfpServer, sweep_file: Path, change: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit_sweep(kfp, sweep_file, change) == 2
    assert words in capsys.readouterr().err
    assert not kfp.state.runs
