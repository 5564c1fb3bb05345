"""The manifests of Argo Workflows: Argo's own models, the graph of the ports, locked-down pods, the same parameters."""

from __future__ import annotations

import copy
import itertools
import json
import re
from functools import cache
from graphlib import TopologicalSorter
from typing import Any

import kubernetes_validate
import pytest
import yaml

from plmsae.cluster import argo_outcome
from plmsae.cluster.argo import argo_manifests, argo_text
from plmsae.cluster.argo_graph import PIPELINES, graph
from plmsae.cluster.argo_tasks import EXIT
from plmsae.cluster.placement import Placement
from plmsae.errors import DataError, GateError, TryAgainError, UserError
from plmsae.params import ParamsFile
from plmsae.stages.catalog import stages
from plmsae.stages.components import EXAMPLE_IMAGE, task_name
from plmsae.stages.reevaluation import EVALUATE
from tests.cluster.argo_models import argo
from tests.k8s.manifests import K8S, documents, problems, references
from tests.k8s.test_manifests import keys
from tests.pipeline.test_graph import compiled
from tests.pipeline.test_graph import tasks as kubeflow_tasks
from tests.workspace import ROOT

CPU = "registry.example.org/plmsae@sha256:" + 64 * "a"
GPU = "registry.example.org/plmsae@sha256:" + 64 * "b"
PARAMS = ROOT / "params.yaml"
SOURCE = ["ingest.source=s3://bucket/proteins.tsv.gz", "ingest.source_sha256=" + 32 * "4e"]
OWN = {"PLMSAE_IMAGE_REF", "KFP_RUN_ID"}  # what a pod is told of itself
Data = dict[str, Any]


def manifests(pipeline: Any = "train", *overrides: str, **options: Any) -> list[Data]:
    made = _usual(pipeline) if not overrides and not options else _made(pipeline, overrides, options)
    return copy.deepcopy(made)


@cache
def _usual(pipeline: Any) -> list[Data]:
    """As a cluster gets them: through YAML."""
    return list(yaml.safe_load_all(argo_text(_made(pipeline, (), {}))))


def _made(pipeline: Any, overrides: Any, options: Data) -> list[Data]:
    found = argo_manifests(pipeline, ParamsFile(PARAMS, overrides), **{"image": CPU, "gpu_image": GPU, **options})
    return list(json.loads(json.dumps(found)))


def pods(workflow: Data) -> dict[str, Data]:
    """Name -> template of everything that runs."""
    return {item["name"]: item for item in workflow["spec"]["templates"] if "container" in item}


def templates(workflow: Data) -> dict[str, Data]:
    """Name -> template of the stages."""
    return {name: item for name, item in pods(workflow).items() if name != EXIT}


def tasks(workflow: Data) -> dict[str, Data]:
    (main,) = [item for item in workflow["spec"]["templates"] if item["name"] == workflow["spec"]["entrypoint"]]
    return {item["name"]: item for item in main["dag"]["tasks"]}


def check(data: Data) -> None:
    """Refuse an object that Argo's or Kubernetes' API does not describe, down to a field too many."""
    if data["kind"] == "ConfigMap":
        kubernetes_validate.validate(data, kubernetes_validate.latest_version(), strict=True)
        return
    model = getattr(argo, data["kind"]).model_validate(data)
    assert model.model_dump(mode="json", by_alias=True, exclude_none=True) == data


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_committed_manifests_are_current_and_fit_the_models_of_argo(pipeline: Any) -> None:
    text = (ROOT / "pipelines" / "argo" / f"{pipeline}.yaml").read_text(encoding="utf-8")
    assert argo_text(argo_manifests(pipeline, ParamsFile(PARAMS), image=EXAMPLE_IMAGE)) == text, "run: make render"
    found = list(yaml.safe_load_all(text))
    assert [item["kind"] for item in found] == ["ConfigMap", "WorkflowTemplate"]
    for item in found:
        check(item)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/serviceAccount", "x"),
        ("spec/templates/1/container/imagePolicy", "x"),
        ("spec/templates/1/container/resources/limits", 3),
        ("spec/templates/0/dag/tasks/0/needs", ["x"]),
        ("spec/templates/1/retryStrategy/limits", 3),
        ("spec/templates/1/activeDeadlineSeconds", {"hours": 1}),
        ("spec/volumeClaimTemplates", {"metadata": {}}),
    ],
)
def test_the_check_of_the_models_can_fail(path: str, value: Any) -> None:
    workflow = manifests()[1]
    *parents, last = path.split("/")
    item: Any = workflow
    for part in parents:
        item = item[int(part)] if part.isdigit() else item[part]
    item[last] = value
    with pytest.raises((AssertionError, ValueError)):
        check(workflow)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_graph_is_that_of_the_ports(pipeline: Any) -> None:
    workflow, chosen = manifests(pipeline)[1], graph(pipeline)
    found = tasks(workflow)
    assert set(found) == set(templates(workflow)) == {task_name(stage) for stage in chosen.stages.values()}
    for stage in chosen.stages.values():
        ports = {chosen.sae if port.source == "train_sae" else port.source for port in stage.inputs}
        before = ports & set(chosen.stages) | {item.stage for item in chosen.given.get(stage.id, ())}
        before |= {*chosen.after.get(stage.id, ()), *([chosen.when[stage.id].stage] if stage.id in chosen.when else [])}
        expected = {task_name(chosen.stages[name]) for name in before}
        assert set(found[task_name(stage)].get("dependencies", ())) == expected
        assert found[task_name(stage)]["template"] == task_name(stage)
    order = list(TopologicalSorter({name: item.get("dependencies", ()) for name, item in found.items()}).static_order())
    assert len(order) == len(found)


@pytest.mark.parametrize("pipeline", ["train", "evaluate", "steer"])  # the others have graphs within the graph there
def test_kubeflow_runs_the_same_tasks_in_the_same_order(pipeline: Any) -> None:
    theirs = kubeflow_tasks(compiled(pipeline))
    ours = tasks(manifests(pipeline)[1])
    assert {name: set(item.get("dependencies", ())) for name, item in ours.items()} == {
        name: set(item.get("dependentTasks", ())) for name, item in theirs.items()
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_a_task_reads_is_what_another_writes(pipeline: Any) -> None:
    workflow, chosen = manifests(pipeline)[1], graph(pipeline)
    written, read = {}, {}
    for stage in chosen.stages.values():
        arguments = templates(workflow)[task_name(stage)]["container"]["args"]
        pairs = list(itertools.pairwise(arguments))
        moved = dict(value.split("=", 1) for option, value in pairs if option == "--input")
        left_out = {value for option, value in pairs if option == "--without"}
        written[task_name(stage)] = next((v for option, v in pairs if option == "--output"), str(stage.output))
        usual = {port.name: f"outputs/{port.source.replace('@', '/')}" for port in stage.inputs}
        read[task_name(stage)] = {folder for port, folder in (usual | moved).items() if port not in left_out}
        assert left_out <= {port.name for port in stage.inputs if port.optional}
        for item in templates(workflow)[task_name(stage)].get("outputs", {}).get("parameters", ()):
            assert item["valueFrom"] == {"path": f"/workspace/{stage.output}/values/{item['name']}"}
    assert len(set(written.values())) == len(written)
    for name, folders in read.items():
        if pipeline == "reevaluate":
            assert not folders, "its tasks read the registry"
            continue
        values = {item.partition(".")[2].partition(".")[0] for item in handed_on(tasks(workflow)[name]).values()}
        before = tasks(workflow)[name].get("dependencies", ())
        assert folders == {written[each] for each in before if each not in values}, name


def test_a_re_evaluation_goes_by_what_has_changed() -> None:
    """As in Kubeflow: one version from the first task to the last, and the verdict also of what drifted before."""
    found = tasks(manifests("reevaluate")[1])
    action = "{{tasks.changes.outputs.parameters.action}}"
    assert list(found) == ["changes", "reevaluate", "verdict"]
    assert "when" not in found["changes"]
    assert found["reevaluate"]["when"] == f"{action} == evaluate"
    assert found["verdict"]["when"] == f"{action} != nothing"
    assert found["verdict"]["dependencies"] == ["changes", "reevaluate"]
    pods = templates(manifests("reevaluate")[1])
    assert "reevaluate.model={{inputs.parameters.uri}}" in pods["verdict"]["container"]["args"]
    assert pods["reevaluate"]["container"]["args"][1:] == [
        "--set",
        "reevaluate.model={{inputs.parameters.uri}}",
        "--set",
        "reevaluate.source={{workflow.parameters.source}}",
    ]
    assert EVALUATE == "evaluate"
    text = (ROOT / "pipelines" / "reevaluate.yaml").read_text(encoding="utf-8")
    assert "== 'evaluate'" in text
    assert "== 'drifted'" in text


def test_the_webhook_is_a_secret_of_those_who_tell() -> None:
    for pipeline in PIPELINES:
        having = {name for name, item in pods(manifests(pipeline)[1]).items() if "plmsae-webhook" in str(item)}
        assert having == ({"verdict", EXIT} if pipeline == "reevaluate" else set())
        for name in having:  # so that the one knows of the other's end of the run
            environment = pods(manifests(pipeline)[1])[name]["container"]["env"]
            assert {"name": "KFP_RUN_ID", "value": "{{workflow.name}}"} in environment


def handed_on(task: Data) -> dict[str, str]:
    """Name -> `tasks.NAME.outputs.parameters.NAME` of the values that a task gets from others."""
    given = task.get("arguments", {}).get("parameters", ())
    return {item["name"]: item["value"].removeprefix("{{").removesuffix("}}") for item in given}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_value_that_a_task_gets_is_one_that_another_has(pipeline: Any) -> None:
    workflow = manifests(pipeline)[1]
    for name, task in tasks(workflow).items():
        wanted = {item["name"] for item in templates(workflow)[name].get("inputs", {}).get("parameters", ())}
        assert set(handed_on(task)) == wanted
        assert set(re.findall(r"{{inputs\.parameters\.(\w+)}}", json.dumps(templates(workflow)[name]))) == wanted
        for value in handed_on(task).values():
            _, producer, *_, key = value.split(".")
            assert producer in task["dependencies"]
            has = {item["name"] for item in templates(workflow)[producer]["outputs"]["parameters"]}
            assert key in has <= {item.name for item in stages()[producer.replace("-", "_")].values}


def pod(workflow: Data, template: Data) -> Data:
    """The pod of a template as Argo puts it together, but for Argo's own containers."""
    spec = workflow["spec"]
    used = {mount["name"] for mount in template["container"]["volumeMounts"]}
    claims = [{"name": item["metadata"]["name"], "persistentVolumeClaim": {}} for item in spec["volumeClaimTemplates"]]
    return {
        "securityContext": spec["securityContext"],
        "volumes": [item for item in [*spec["volumes"], *claims] if item["name"] in used],
        "containers": [{"name": template["name"], **template["container"]}],
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_pod_keeps_the_rules(pipeline: Any) -> None:
    workflow = manifests(pipeline)[1]
    volumes = {item["name"] for item in workflow["spec"]["volumes"]} | {"workspace"}
    for name, template in pods(workflow).items():
        # The token is for Argo's executor, which reports from the same pod.
        assert problems(pod(workflow, template)) == ["mounts a token that it does not need"]
        assert {mount["name"] for mount in template["container"]["volumeMounts"]} <= volumes
        assert template["activeDeadlineSeconds"] > 0
        assert template["retryStrategy"]["expression"].startswith("not (asInt(lastRetry.exitCode) in")
        assert template["container"].get("workingDir") == (None if name == EXIT else "/workspace")


def test_a_pod_that_breaks_a_rule_is_found() -> None:
    workflow = manifests()[1]
    del workflow["spec"]["securityContext"]["seccompProfile"]
    assert any("seccomp" in text for text in problems(pod(workflow, templates(workflow)["ingest"])))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_the_tasks_read_is_in_the_manifests_of_the_namespace(pipeline: Any) -> None:
    params, workflow = manifests(pipeline)
    known = {"Secret": keys("Secret"), "ConfigMap": keys("ConfigMap") | {params["metadata"]["name"]: {"params.yaml"}}}
    for template in pods(workflow).values():
        for kind, name, key in references(pod(workflow, template)):
            assert not key or key in known[kind][name]
            assert name in known[kind]
    for template in templates(workflow).values():
        required = [item["name"] for item in template["container"]["env"] if "optional" not in str(item)]
        assert [name for name in required if name not in OWN] == ["MLFLOW_TRACKING_URI"]
    accounts = [item.data for item in documents(K8S / "base") if item.data["kind"] == "Role"]
    (role,) = [item for item in accounts if item["metadata"]["name"] == workflow["spec"]["serviceAccountName"]]
    assert {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]} in role[
        "rules"
    ]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_stage_gets_what_it_declares(pipeline: Any) -> None:
    workflow = manifests(pipeline)[1]
    for stage in graph(pipeline).stages.values():
        template, need = templates(workflow)[task_name(stage)], stage.resources
        container = template["container"]
        assert container["command"] == ["plmsae", "run", stage.id]
        assert container["image"] == (GPU if need.gpu else CPU)
        amounts = {"cpu": str(need.cpu), "memory": f"{need.memory_gib}Gi"}
        amounts |= {"nvidia.com/gpu": str(need.gpu)} if need.gpu else {}
        assert container["resources"] == {"requests": amounts, "limits": amounts}
        assert template["activeDeadlineSeconds"] == need.timeout_hours * 3600
        assert template.get("retryStrategy", {}).get("limit", 0) == {"none": 0, "io": 2, "gpu": 3}[need.retry]
        assert bool(template.get("nodeSelector")) == bool(need.gpu)
        assert ("/dev/shm" in str(container["volumeMounts"])) == bool(need.gpu)
        assert ("PLMSAE_IMAGE_REF" in str(container["env"])) == stage.side_effects


def test_only_what_may_succeed_a_second_time_is_repeated() -> None:
    expressions = {item["retryStrategy"]["expression"] for item in templates(manifests()[1]).values()}
    final = [UserError("").exit_code, DataError("").exit_code, GateError("").exit_code]
    assert expressions == {f"not (asInt(lastRetry.exitCode) in {final})"}
    assert TryAgainError("").exit_code not in final


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_exit_task_runs_whatever_happened_and_reads_what_argo_says(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    workflow = manifests(pipeline)[1]
    assert workflow["spec"]["onExit"] == EXIT
    assert EXIT not in tasks(workflow)
    container = pods(workflow)[EXIT]["container"]
    assert container["command"] == ["python", "-m", argo_outcome.__name__]
    said = {"name": "run-1", "status": "Failed", "failures": "[]", "parameters.model": "models:/a@b"}
    arguments = [re.sub(r"{{workflow\.([\w.]+)}}", lambda found: said[found[1]], item) for item in container["args"]]
    assert argo_outcome.main(arguments) == 0
    assert "run-1 ended as FAILED" in capsys.readouterr().out


def test_processes_of_a_training_multiply_what_it_asks_for_and_nodes_are_refused() -> None:
    limits = templates(manifests("train", "train_sae.num_processes=4")[1])["train-sae"]["container"]["resources"]
    assert limits["limits"] == {"cpu": "16", "memory": "32Gi", "nvidia.com/gpu": "4"}
    with pytest.raises(UserError, match="2 nodes is a TrainJob"):
        manifests("train", "train_sae.num_nodes=2")


def test_without_gpus_nothing_asks_for_one() -> None:
    place = Placement(gpu_type=None, node_selector={}, tolerations=[], image_pull_secrets=["pull"])
    workflow = manifests(placement=place)[1]
    assert "nvidia.com/gpu" not in str(workflow)
    assert workflow["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    check(workflow)


def test_an_extraction_on_cuda_takes_a_gpu_and_its_image() -> None:
    found = templates(manifests("evaluate", "extract_activations.device=cuda")[1])
    task = found.pop("extract-activations")
    assert task["container"]["image"] == GPU
    assert task["container"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert task["nodeSelector"] == {"plmsae.io/pool": "gpu"}
    assert not [name for name, item in found.items() if "nvidia.com/gpu" in str(item)]
