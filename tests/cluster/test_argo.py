"""The manifests of Argo Workflows: Argo's own models, the graph of the ports, locked-down pods, the same parameters."""

from __future__ import annotations

import copy
import itertools
import json
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from plmsae import cli
from plmsae.cluster.argo import PIPELINES, argo_manifests, argo_stages, argo_text
from plmsae.cluster.placement import Placement
from plmsae.errors import DataError, GateError, TryAgainError, UserError
from plmsae.params import ParamsFile
from plmsae.stages.catalog import load_params
from plmsae.stages.components import EXAMPLE_IMAGE, task_name
from tests.cluster.argo_models import argo
from tests.k8s.manifests import K8S, documents, load, problems, references
from tests.k8s.test_manifests import keys
from tests.workspace import ROOT

CPU = "registry.example.org/plmsae@sha256:" + 64 * "a"
GPU = "registry.example.org/plmsae@sha256:" + 64 * "b"
PARAMS = ROOT / "params.yaml"
SOURCE = ["ingest.source=s3://bucket/proteins.tsv.gz", "ingest.source_sha256=" + 32 * "4e"]
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


def templates(workflow: Data) -> dict[str, Data]:
    return {item["name"]: item for item in workflow["spec"]["templates"] if "container" in item}


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
    workflow, chosen = manifests(pipeline)[1], argo_stages(pipeline)
    found = tasks(workflow)
    assert set(found) == set(templates(workflow)) == {task_name(stage) for stage in chosen.values()}
    for stage in chosen.values():
        sae = "sweep" if pipeline == "sweep" else "train_sae"
        before = {sae if port.source == "train_sae" else port.source for port in stage.inputs}
        assert set(found[task_name(stage)].get("dependencies", ())) == {task_name(chosen[name]) for name in before}
        assert found[task_name(stage)]["template"] == task_name(stage)
    order = list(TopologicalSorter({name: item.get("dependencies", ()) for name, item in found.items()}).static_order())
    assert order[0] == "ingest"
    assert len(order) == len(found)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_a_task_reads_is_what_another_writes(pipeline: Any) -> None:
    workflow, chosen = manifests(pipeline)[1], argo_stages(pipeline)
    written, read = {}, {}
    for stage in chosen.values():
        arguments = templates(workflow)[task_name(stage)]["container"]["args"]
        pairs = list(itertools.pairwise(arguments))
        moved = dict(value.split("=", 1) for option, value in pairs if option == "--input")
        written[task_name(stage)] = next((v for option, v in pairs if option == "--output"), str(stage.output))
        usual = {port.name: f"outputs/{port.source.replace('@', '/')}" for port in stage.inputs}
        read[task_name(stage)] = set((usual | moved).values())
    assert len(set(written.values())) == len(written)
    for name, folders in read.items():
        assert folders == {written[before] for before in tasks(workflow)[name].get("dependencies", ())}, name


def pod(workflow: Data, template: Data) -> Data:
    """The pod of a task as Argo puts it together, but for Argo's own containers."""
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
    for template in templates(workflow).values():
        # The token is for Argo's executor, which reports from the same pod.
        assert problems(pod(workflow, template)) == ["mounts a token that it does not need"]
        assert {mount["name"] for mount in template["container"]["volumeMounts"]} <= volumes
        assert template["container"]["workingDir"] == "/workspace"


def test_a_pod_that_breaks_a_rule_is_found() -> None:
    workflow = manifests()[1]
    del workflow["spec"]["securityContext"]["seccompProfile"]
    assert any("seccomp" in text for text in problems(pod(workflow, templates(workflow)["ingest"])))


def test_what_the_tasks_read_is_in_the_manifests_of_the_namespace() -> None:
    params, workflow = manifests()
    known = {"Secret": keys("Secret"), "ConfigMap": keys("ConfigMap") | {params["metadata"]["name"]: {"params.yaml"}}}
    for template in templates(workflow).values():
        for kind, name, key in references(pod(workflow, template)):
            assert not key or key in known[kind][name]
            assert name in known[kind]
        required = [item["name"] for item in template["container"]["env"] if "optional" not in str(item)]
        assert [name for name in required if name != "PLMSAE_IMAGE_REF"] == ["MLFLOW_TRACKING_URI"]
    accounts = [item.data for item in documents(K8S / "base") if item.data["kind"] == "Role"]
    (role,) = [item for item in accounts if item["metadata"]["name"] == workflow["spec"]["serviceAccountName"]]
    assert {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]} in role[
        "rules"
    ]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_stage_gets_what_it_declares(pipeline: Any) -> None:
    workflow = manifests(pipeline)[1]
    for stage in argo_stages(pipeline).values():
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


def resolved(pipeline: Any, tmp_path: Path, found: list[Data], **knobs: str) -> dict[str, Any]:
    """Stage id -> parameters, from the command lines with the arguments of a run filled in."""
    params, workflow = found
    (tmp_path / "params.yaml").write_text(params["data"]["params.yaml"], encoding="utf-8")
    values = {item["name"]: item.get("value") for item in workflow["spec"]["arguments"]["parameters"]} | knobs
    answer = {}
    for stage in argo_stages(pipeline).values():
        arguments = templates(workflow)[task_name(stage)]["container"]["args"]
        assert arguments[0] == "--params=/etc/plmsae/params.yaml"
        overrides = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
        for name, value in values.items():
            overrides = [item.replace("{{workflow.parameters." + name + "}}", str(value)) for item in overrides]
        assert "{{" not in str(overrides)
        answer[stage.id] = load_params(ParamsFile(tmp_path / "params.yaml", overrides), stage)
    return answer


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_arguments_give_the_parameters_of_the_file(pipeline: Any, tmp_path: Path) -> None:
    file = ParamsFile(PARAMS, SOURCE)
    expected = {stage.id: load_params(file, stage) for stage in argo_stages(pipeline).values()}
    assert resolved(pipeline, tmp_path, manifests(pipeline, *SOURCE)) == expected
    by_hand = resolved(pipeline, tmp_path, manifests(pipeline), **dict(item[7:].split("=") for item in SOURCE))
    assert by_hand == expected


def test_a_knob_reaches_every_stage_that_has_it(tmp_path: Path) -> None:
    knobs = {"seed": "7", "store": "s3://bucket/store", "k": "64", "architecture": "no", "strength": "0.5"}
    found = resolved("train", tmp_path, manifests("train", *SOURCE), **{**knobs, "architecture": "relu"})
    assert {stage_id for stage_id, values in found.items() if getattr(values, "seed", None) == 7} == {
        "ingest",
        "extract_activations",
        "train_sae",
    }
    assert found["extract_activations"].store == "s3://bucket/store"
    assert (found["train_sae"].k, found["train_sae"].architecture, found["steer"].strength) == (64, "relu", 0.5)
    grid = json.dumps({"k": [4, 8]})
    assert resolved("sweep", tmp_path, manifests("sweep", *SOURCE), grid=grid)["sweep"].grid == {"k": [4, 8]}


def test_a_seed_of_the_members_is_not_that_of_the_proteins(tmp_path: Path) -> None:
    overrides = (*SOURCE, "train_sae.seed=5")
    stage = argo_stages("sweep")["sweep"]
    found = resolved("sweep", tmp_path, manifests("sweep", *overrides), seed="7")
    assert found["sweep"] == load_params(ParamsFile(PARAMS, overrides), stage)
    assert found["ingest"].seed == 7


def test_a_checksum_of_digits_stays_a_text(tmp_path: Path) -> None:
    found = resolved("train", tmp_path, manifests("train", *SOURCE), source_sha256=64 * "1")
    assert found["ingest"].source_sha256 == 64 * "1"


def test_other_parameters_are_another_map() -> None:
    first, second = manifests(), manifests("train", "train_sae.learning_rate=0.5")
    assert first[0]["metadata"]["name"] != second[0]["metadata"]["name"]
    for params, workflow in (first, second):
        assert params["immutable"] is True
        assert {"name": "params", "configMap": {"name": params["metadata"]["name"]}} in workflow["spec"]["volumes"]
    assert manifests() == first


def test_a_schedule_is_a_cron_workflow_of_the_template() -> None:
    found = manifests("train", *SOURCE, schedule="0 2 * * 0", storage="20Gi", access_mode="ReadWriteOnce")
    for item in found:
        check(item)
    workflow, clock = found[1], found[2]
    assert clock["kind"] == "CronWorkflow"
    assert clock["spec"]["schedules"] == ["0 2 * * 0"]
    assert clock["spec"]["concurrencyPolicy"] == "Forbid"
    assert clock["spec"]["workflowSpec"]["workflowTemplateRef"] == {"name": workflow["metadata"]["name"]}
    assert all("value" in item for item in workflow["spec"]["arguments"]["parameters"])
    (claim,) = workflow["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


@pytest.mark.parametrize(
    ("overrides", "schedule", "message"),
    [
        ([], "0 2 * * 0", "asks nobody for source and source_sha256"),
        (SOURCE[:1], "0 2 * * 0", "asks nobody for"),
        (SOURCE, "0 0 2 * * 0", "is no schedule"),
        (SOURCE, "soon", "is no schedule"),
    ],
)
def test_a_schedule_that_cannot_start_is_refused(overrides: list[str], schedule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifests("train", *overrides, schedule=schedule)


def test_a_file_of_this_machine_is_no_default() -> None:
    parameters = manifests()[1]["spec"]["arguments"]["parameters"]
    assert [item["name"] for item in parameters if "value" not in item] == ["source", "source_sha256"]


def test_compile_writes_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    output = tmp_path / "argo.yaml"
    command = ["compile", "train", "--argo", "--image", CPU, "--gpu-image", GPU, "--output", str(output)]
    assert cli.main(command) == 0
    assert f"kubectl apply -f {output}" in capsys.readouterr().out
    assert load(output) == manifests()
    options = ["--set", SOURCE[0], "--set", SOURCE[1], "--schedule", "0 2 * * 0", "--one-node", "--storage", "20Gi"]
    assert cli.main([*command, *options, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sha256"]) == 64
    expected = manifests("train", *SOURCE, schedule="0 2 * * 0", storage="20Gi", access_mode="ReadWriteOnce")
    assert load(output) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--argo", "--image", "plmsae:dev"], "not named by digest"),
        (["evaluate", "--argo", "--image", CPU], "no Argo manifest of 'evaluate'"),
        (["train", "--argo", "--image", CPU, "--state-claim", "x"], "the volume of the run keeps the checkpoints"),
        (["train", "--argo", "--image", CPU, "--set", "train_sae.q=1"], "train_sae.q"),
        (["train", "--image", CPU, "--schedule", "0 2 * * 0"], "are for --argo"),
    ],
)
def test_compile_refuses(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["compile", *arguments, "--output", str(tmp_path / "x.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_the_documented_command_makes_what_the_page_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (ROOT / "docs" / "how-to" / "argo.md").read_text(encoding="utf-8")
    (line,) = [line.strip() for line in page.splitlines() if line.startswith("    plmsae compile")]
    command = line.replace("REGISTRY", "registry.example.org").replace("DIGEST", 64 * "a").split()
    assert command.pop(0) == "plmsae"
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 0
    assert "-> train.yaml\nkubectl apply -f train.yaml" in capsys.readouterr().out
    workflow = load(tmp_path / "train.yaml")[1]
    assert "kubectl apply -n plmsae -f train.yaml" in page
    assert f"--from workflowtemplate/{workflow['metadata']['name']}" in page
    named = {item["name"] for item in workflow["spec"]["arguments"]["parameters"]}
    assert set(re.findall(r"-p (\w+)=", page)) <= named
