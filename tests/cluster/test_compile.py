"""Compiled pipelines: valid specifications, right images, resources, retries, limits and caching."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

from plmsae import cli
from plmsae.cluster.compile import compile_pipeline, pipeline_names
from plmsae.cluster.placement import Placement, Toleration
from plmsae.cluster.ranks import on_gpu, ranks
from plmsae.cluster.render import pipeline_targets
from plmsae.cluster.sections import pipeline_arguments
from plmsae.cluster.train_job import TrainJobSettings
from plmsae.errors import UserError
from plmsae.params import ParamsFile
from plmsae.stages.catalog import stages, stages_of
from plmsae.stages.components import EXAMPLE_IMAGE, function_name, task_name
from tests.workspace import BIN, ROOT, call

CPU = "registry.example.org/plmsae@sha256:" + 64 * "a"
GPU = "registry.example.org/plmsae@sha256:" + 64 * "b"


@pytest.fixture(scope="module")
def package() -> tuple[dict[str, Any], dict[str, Any]]:
    specification, platform = yaml.safe_load_all(compile_pipeline("train", image=CPU, gpu_image=GPU, root=ROOT))
    return specification, platform


@pytest.fixture(scope="module")
def tagged() -> str:
    """Compiled for an image by tag, and four processes of the training."""
    return compile_pipeline("train", image="plmsae:dev", root=ROOT, allow_tag=True, ranks={"train_sae": (1, 4)})


def tasks(specification: dict[str, Any]) -> dict[str, Any]:
    graphs = [specification["root"], *specification["components"].values()]
    return {name: task for graph in graphs if "dag" in graph for name, task in graph["dag"]["tasks"].items()}


def executor(document: dict[str, Any], task: str) -> dict[str, Any]:
    found: dict[str, Any] = document["deploymentSpec"]["executors"][f"exec-{task}"]
    return found


@pytest.fixture(scope="module")
def targets() -> dict[str, str]:
    """Everything that is compiled from the repository, by path."""
    return pipeline_targets(ROOT)


@pytest.mark.parametrize("name", pipeline_names(ROOT))
def test_the_committed_package_is_current_and_a_valid_specification(name: str, targets: dict[str, str]) -> None:
    text = (ROOT / "pipelines" / f"{name}.yaml").read_text(encoding="utf-8")
    assert targets[f"pipelines/{name}.yaml"] == text, "run: make render"
    specification, platform = yaml.safe_load_all(text)
    json_format.ParseDict(specification, PipelineSpec())
    json_format.ParseDict(platform, PlatformSpec())
    with pytest.raises(json_format.ParseError):
        json_format.ParseDict({**specification, "tasks": {}}, PipelineSpec())


def test_the_committed_components_are_current_and_can_be_loaded(targets: dict[str, str]) -> None:
    from kfp.components import load_component_from_file

    for stage in stages().values():
        path = ROOT / "components" / stage.name / f"{function_name(stage)}.yaml"
        assert targets[path.relative_to(ROOT).as_posix()] == path.read_text(encoding="utf-8")
        component = load_component_from_file(str(path))
        assert set(stage.knobs) <= set(component.component_spec.inputs)
        assert {port.name for port in stage.inputs} <= set(component.component_spec.inputs)
        assert {"output", "metrics", "summary", "manifest_sha256"} <= set(component.component_spec.outputs)
        assert ("report" in component.component_spec.outputs) == bool(stage.report)


def test_every_stage_gets_what_it_declares(package: tuple[dict[str, Any], dict[str, Any]]) -> None:
    specification, platform = package
    for stage in stages_of("train").values():
        name, need = task_name(stage), stage.resources
        container = executor(specification, name)["container"]
        assert container["command"] == ["plmsae", "run", stage.id]
        assert container["args"] == ["--executor-input", "{{$}}"]
        assert container["image"] == (GPU if need.gpu else CPU)
        resources = container["resources"]
        for bound in ("Request", "Limit"):
            assert resources[f"resourceCpu{bound}"] == str(need.cpu)
            assert resources[f"resourceMemory{bound}"] == f"{need.memory_gib}Gi"
        assert resources.get("accelerator", {}).get("count", "0") == str(need.gpu)
        task = tasks(specification)[name]
        assert task.get("retryPolicy", {}).get("maxRetryCount", 0) == {"none": 0, "io": 2, "gpu": 3}[need.retry]
        kubernetes = executor(platform["platforms"]["kubernetes"], name)
        assert kubernetes["activeDeadlineSeconds"] == str(need.timeout_hours * 3600)
        assert bool(kubernetes.get("nodeSelector")) == bool(need.gpu)


def test_pods_run_as_nobody_with_a_registry_and_secrets_by_name(
    package: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    executors = package[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(package[0]["deploymentSpec"]["executors"])
    for settings in executors.values():
        context = settings["securityContext"]
        assert context == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        required = [item for item in settings["configMapAsEnv"] if not item.get("optional")]
        assert [entry["envVar"] for item in required for entry in item["keyToEnv"]] == ["MLFLOW_TRACKING_URI"]
        assert {item["secretName"] for item in settings["secretAsEnv"]} == {"plmsae-s3", "plmsae-mlflow"}
        assert {"volumeName": "tmp", "mountPath": "/tmp"} in settings["emptyDirMounts"]


def test_side_effects_are_never_cached_and_nothing_is_by_tag(
    package: tuple[dict[str, Any], dict[str, Any]], tagged: str
) -> None:
    cached = {n for n, t in tasks(package[0]).items() if t.get("cachingOptions", {}).get("enableCache")}
    pure = {task_name(stage) for stage in stages_of("train").values() if not stage.side_effects}
    assert cached & {task_name(stage) for stage in stages_of("train").values()} == pure
    assert "report-outcome" not in cached
    by_tag = next(yaml.safe_load_all(tagged))
    assert not {n for n, t in tasks(by_tag).items() if t.get("cachingOptions", {}).get("enableCache")} & pure


Of = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]


def platform_of(text: str) -> Of:
    """Task -> (container, Kubernetes settings) of a compiled pipeline."""
    specification, platform = yaml.safe_load_all(text)
    json_format.ParseDict(platform, PlatformSpec())
    kubernetes = platform["platforms"]["kubernetes"]
    return lambda task: (executor(specification, task)["container"], executor(kubernetes, task))


@pytest.fixture(scope="module")
def placed() -> Of:
    """Compiled with a volume for checkpoints and a placement."""
    placement = Placement(
        gpu_type="amd.com/gpu",
        node_selector={"team": "a"},
        tolerations=[Toleration(key="team", operator="Equal", value="a", effect="NoExecute")],
        spot="aks",
        shared_memory="9Gi",
        image_pull_secrets=["registry"],
    )
    return platform_of(compile_pipeline("train", image=CPU, root=ROOT, state_claim="plmsae-state", placement=placement))


def test_a_volume_for_checkpoints_goes_to_the_stages_that_leave_some(placed: Of) -> None:
    for stage in stages_of("train").values():
        container, settings = placed(task_name(stage))
        assert [(item["constant"], item["mountPath"]) for item in settings.get("pvcMount", [])] == (
            [("plmsae-state", "/state")] if stage.resumable else []
        )
        assert container.get("env", []) == ([{"name": "PLMSAE_STATE", "value": "/state"}] if stage.resumable else [])


def test_what_registers_knows_its_run_and_image(package: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for stage in stages_of("train").values():
        settings = executor(package[1]["platforms"]["kubernetes"], task_name(stage))
        variables = {item["name"]: item["fieldPath"] for item in settings.get("fieldPathAsEnv", [])}
        annotations = settings.get("podMetadata", {}).get("annotations", {})
        if not stage.side_effects:
            assert (variables, annotations) == ({}, {})
            continue
        assert annotations == {"plmsae.io/image": CPU}
        assert variables == {
            "KFP_RUN_ID": "metadata.labels['pipeline/runid']",
            "PLMSAE_IMAGE_REF": "metadata.annotations['plmsae.io/image']",
        }


def test_the_form_is_typed_and_filled_with_params_yaml(package: tuple[dict[str, Any], dict[str, Any]]) -> None:
    form = package[0]["root"]["inputDefinitions"]["parameters"]
    arguments = pipeline_arguments(ParamsFile(ROOT / "params.yaml"))
    assert {name for name, field in form.items() if not field.get("isOptional")} == {"source", "source_sha256"}
    types = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN"}
    for name, value in arguments.items():
        assert form[name]["parameterType"] == types[type(value)], name
        if name not in ("source", "source_sha256"):
            assert form[name]["defaultValue"] == value, name
    for name, field in form.items():
        assert field["description"], name
        if name.endswith("_params"):
            json.loads(field["defaultValue"])


def test_the_sweep_has_a_gpu_checkpoints_and_its_grid_in_the_form() -> None:
    text = compile_pipeline("sweep", image=CPU, gpu_image=GPU, root=ROOT, state_claim="plmsae-state")
    specification, platform = yaml.safe_load_all(text)
    stage = stages()["sweep"]
    container = executor(specification, "sweep")["container"]
    assert (container["image"], container["command"]) == (GPU, ["plmsae", "run", "sweep"])
    assert container["resources"]["accelerator"]["count"] == "1"
    assert container["env"] == [{"name": "PLMSAE_STATE", "value": "/state"}]
    settings = executor(platform["platforms"]["kubernetes"], "sweep")
    assert settings["activeDeadlineSeconds"] == str(stage.resources.timeout_hours * 3600)
    assert settings["pvcMount"][0]["constant"] == "plmsae-state"
    cached = {name for name, task in tasks(specification).items() if task.get("cachingOptions", {}).get("enableCache")}
    assert "sweep" in cached
    assert not {"register", "report-outcome"} & cached
    form = specification["root"]["inputDefinitions"]["parameters"]
    assert {name for name, field in form.items() if not field.get("isOptional")} == {"source", "source_sha256"}
    arguments = pipeline_arguments(ParamsFile(ROOT / "params.yaml"), ["sweep", "sweep_pairs"])
    assert {name: form[name]["defaultValue"] for name in arguments} == arguments
    assert (arguments["layers"], arguments["architectures"]) == ([3], ["topk"])
    assert {form[name]["parameterType"] for name in ("layers", "architectures")} == {"LIST"}
    assert form["grid"]["parameterType"] == "STRING"
    assert all(field["description"] for field in form.values())


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("tran", CPU, "unknown pipeline 'tran'"),
        ("settings", CPU, "unknown pipeline 'settings'"),
        ("composition", CPU, "unknown pipeline 'composition'"),
        ("train", "plmsae:latest", "not named by digest"),
        ("train", "", "does not name an image"),
        ("train", "a b@sha256:" + 64 * "a", "does not name an image"),
    ],
)
def test_what_cannot_be_compiled_is_refused(name: str, image: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compile_pipeline(name, image=image, root=ROOT)


def test_elsewhere_there_is_nothing_to_compile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pipelines here"):
        compile_pipeline("train", image=CPU, root=tmp_path)


def test_a_broken_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "mine.py").write_text("import nothing_like_this\n")
    with pytest.raises(UserError, match="'mine' does not compile: ModuleNotFoundError"):
        compile_pipeline("mine", image=CPU, root=tmp_path)


def test_one_seed_for_a_pipeline(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text)
    assert pipeline_arguments(ParamsFile(path))["seed"] == 0
    with pytest.raises(UserError, match=r"one 'seed', but 'extract_activations.seed' is 0 and 'train_sae.seed' is 1"):
        pipeline_arguments(ParamsFile(path, ["train_sae.seed=1"]))
    assert "seed" not in pipeline_arguments(ParamsFile(path), ["validate"])


def test_the_verb_writes_the_package(tmp_path: Path) -> None:
    (tmp_path / ".home").mkdir()
    for name in ("components", "pipelines", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    plmsae = str(BIN / "plmsae")
    done = call(tmp_path, plmsae, "compile", "train", "--image", EXAMPLE_IMAGE, "--json")
    assert json.loads(done.stdout)["output"] == "train.yaml"
    assert (tmp_path / "train.yaml").read_text() == (ROOT / "pipelines" / "train.yaml").read_text()
    refused = call(tmp_path, plmsae, "compile", "train", "--image", "plmsae:dev", check=False)
    assert refused.returncode == 2
    assert "not named by digest" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_placement_sends_tasks_with_a_gpu_to_its_nodes(placed: Of) -> None:
    for stage in stages_of("train").values():
        container, settings = placed(task_name(stage))
        if not stage.resources.gpu:
            assert "nodeSelector" not in settings
            assert "accelerator" not in container["resources"]
            continue
        assert container["resources"]["accelerator"]["type"] == "amd.com/gpu"
        assert settings["nodeSelector"]["labels"] == {"team": "a", "kubernetes.azure.com/scalesetpriority": "spot"}
        assert [(item["key"], item["operator"], item["value"], item["effect"]) for item in settings["tolerations"]] == [
            ("team", "Equal", "a", "NoExecute"),
            ("kubernetes.azure.com/scalesetpriority", "Equal", "spot", "NoSchedule"),
        ]
        (memory,) = [item for item in settings["emptyDirMounts"] if item["mountPath"] == "/dev/shm"]
        assert memory["sizeLimit"] == "9Gi"
        assert [item["secretName"] for item in settings["imagePullSecret"]] == ["registry"]


def test_several_processes_on_one_node_take_as_many_gpus(tagged: str) -> None:
    of = platform_of(tagged)
    container, settings = of("train-sae")
    need = stages()["train_sae"].resources
    assert container["resources"]["accelerator"] == {
        "count": "4",
        "resourceCount": "4",
        "resourceType": "nvidia.com/gpu",
        "type": "nvidia.com/gpu",
    }
    assert container["resources"]["resourceCpuLimit"] == str(4 * need.cpu)
    assert container["resources"]["resourceMemoryLimit"] == f"{4 * need.memory_gib}Gi"
    assert "fieldPathAsEnv" not in settings
    other, _ = of("extract-activations")
    assert other["resources"]["resourceCpuLimit"] == str(stages()["extract_activations"].resources.cpu)


def test_an_extraction_on_cuda_takes_a_gpu_its_image_and_its_nodes(tmp_path: Path) -> None:
    asked = on_gpu(ParamsFile(ROOT / "params.yaml", ["extract_activations.device=cuda"]))
    assert asked == ["extract_activations"]
    assert on_gpu(ParamsFile(ROOT / "params.yaml")) == on_gpu(
        ParamsFile(ROOT / "params.yaml", ["train_sae.device=cuda"])
    )
    text = compile_pipeline("steer", image=CPU, root=ROOT, on_gpu=asked)
    assert "accelerator" not in text, "steering extracts nothing"
    text = compile_pipeline("evaluate", image=CPU, gpu_image=GPU, root=ROOT, on_gpu=asked)
    specification, platform = yaml.safe_load_all(text)
    found = executor(specification, "extract-activations")["container"]
    assert found["image"] == GPU
    assert found["resources"]["accelerator"] == {
        "count": "1",
        "resourceCount": "1",
        "resourceType": "nvidia.com/gpu",
        "type": "nvidia.com/gpu",
    }
    settings = executor(platform["platforms"]["kubernetes"], "extract-activations")
    assert settings["nodeSelector"] == {"labels": {"plmsae.io/pool": "gpu"}}
    assert settings["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    others = [
        item["container"]
        for name, item in specification["deploymentSpec"]["executors"].items()
        if name != "exec-extract-activations"
    ]
    assert not [item for item in others if item["image"] == GPU or "accelerator" in item.get("resources", {})]


def test_several_nodes_are_a_job_that_the_task_starts_without_a_gpu_of_its_own() -> None:
    placement = Placement(gpu_type="amd.com/gpu", spot="gke", cpu=90)
    text = compile_pipeline(
        "train",
        image=CPU,
        gpu_image=GPU,
        root=ROOT,
        state_claim="claim",
        placement=placement,
        ranks={"train_sae": (2, 8)},
    )
    container, settings = platform_of(text)("train-sae")
    need = stages()["train_sae"].resources
    assert "accelerator" not in container["resources"]
    assert "nodeSelector" not in settings
    assert container["resources"]["resourceCpuLimit"] == str(need.cpu)
    (given,) = [item["value"] for item in container["env"] if item["name"] == "PLMSAE_TRAIN_JOB"]
    assert TrainJobSettings.model_validate_json(given) == TrainJobSettings(
        num_nodes=2,
        num_processes=8,
        image=GPU,
        state_claim="claim",
        state_folder="/state",
        cpu=90,
        memory_gib=8 * need.memory_gib,
        timeout_seconds=need.timeout_hours * 3600,
        placement=placement,
    )
    assert "{{" not in given  # Argo's and KFP's placeholders
    variables = {item["name"]: item["fieldPath"] for item in settings["fieldPathAsEnv"]}
    assert variables == {"PLMSAE_NAMESPACE": "metadata.namespace"}


def test_several_nodes_need_a_volume() -> None:
    with pytest.raises(UserError, match="'train_sae' on 2 nodes needs a volume") as raised:
        compile_pipeline("train", image=CPU, root=ROOT, ranks={"train_sae": (2, 1)})
    assert "--state-claim" in str(raised.value.fix)


def test_the_verb_takes_a_placement_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "placement.yaml").write_text("node_selector: {team: a}\nspot: karpenter\n")
    monkeypatch.chdir(ROOT)
    output = tmp_path / "train.yaml"
    given = ["compile", "train", "--image", CPU, "--output", str(output)]
    assert cli.main([*given, "--placement", str(tmp_path / "placement.yaml")]) == 0
    _, settings = platform_of(output.read_text())("train-sae")
    assert settings["nodeSelector"]["labels"] == {"team": "a", "karpenter.sh/capacity-type": "spot"}
    assert cli.main([*given, "--placement", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize(
    ("overrides", "train", "sweep"),
    [
        ((), (1, 1), (1, 1)),
        (("train_sae.num_nodes=2", "train_sae.num_processes=8"), (2, 8), (2, 8)),
        (("sweep.train_sae={num_processes: 4}",), (1, 1), (1, 4)),
    ],
)
def test_the_numbers_of_ranks_are_those_of_the_parameters(
    overrides: tuple[str, ...], train: tuple[int, int], sweep: tuple[int, int]
) -> None:
    assert ranks(ParamsFile(ROOT / "params.yaml", overrides)) == {"train_sae": train, "sweep": sweep}
