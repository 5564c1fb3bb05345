"""The TrainJob object: it fits Trainer's API, and every setting stands where the operator reads it."""

from __future__ import annotations

import copy
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae.cli import build_parser
from plmsae.cluster.placement import Placement, Toleration, read_placement
from plmsae.cluster.ranks import ranks
from plmsae.cluster.train_job import TrainJobSettings, job_name, torchrun, train_job
from plmsae.errors import UserError
from plmsae.params import ParamsFile
from tests.cluster.trainer_server import RefusalError, check_train_job, runtime

KEY = 32 * "a5"
IMAGE = "registry.example.org/plmsae@sha256:" + 64 * "b"
RUNTIMES = {"plmsae-torch": runtime()}


def settings(placement: Placement | None = None, **changes: Any) -> TrainJobSettings:
    values: dict[str, Any] = {
        "num_nodes": 3,
        "num_processes": 4,
        "image": IMAGE,
        "state_claim": "plmsae-state",
        "state_folder": "/state",
        "cpu": 16,
        "memory_gib": 64,
        "timeout_seconds": 3600,
        "placement": placement or Placement(),
    }
    return TrainJobSettings(**(values | changes))


def job(placement: Placement | None = None, **changes: Any) -> dict[str, Any]:
    given = settings(placement, **changes)
    return train_job(KEY, "team", torchrun("plmsae.training.worker", ["/state/job.json"], given), given)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (patch,) = manifest["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    found: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize(
    "placement",
    [
        Placement(),
        Placement(spot="gke", shared_memory="64Gi", image_pull_secrets=["registry"]),
        Placement(gpu_type=None, node_selector={}, tolerations=[], service_account=None),
        Placement(gpu_type="amd.com/gpu", tolerations=[Toleration(key="team", operator="Equal", value="a")]),
    ],
)
def test_a_cluster_takes_the_job(placement: Placement) -> None:
    check_train_job(job(placement), RUNTIMES)


def _old_name(manifest: dict[str, Any]) -> None:
    manifest["spec"]["podSpecOverrides"] = manifest["spec"].pop("runtimePatches")


def _environment_in_the_patch(manifest: dict[str, Any]) -> None:
    pod_of(manifest)["containers"][0]["env"] = [{"name": "A", "value": "b"}]


def _unknown_container(manifest: dict[str, Any]) -> None:
    pod_of(manifest)["containers"][0]["name"] = "trainer"


def _plain_manager(manifest: dict[str, Any]) -> None:
    manifest["spec"]["runtimePatches"][0]["manager"] = "plmsae"


def _text_for_a_number(manifest: dict[str, Any]) -> None:
    manifest["spec"]["trainer"]["numNodes"] = "3"


def _unknown_runtime(manifest: dict[str, Any]) -> None:
    manifest["spec"]["runtimeRef"]["name"] = "torch"


def _reserved_variable(manifest: dict[str, Any]) -> None:
    manifest["spec"]["trainer"]["env"].append({"name": "PET_NNODES", "value": "2"})


def _long_name(manifest: dict[str, Any]) -> None:
    manifest["metadata"]["name"] = 64 * "a"


@pytest.mark.parametrize(
    "damage",
    [
        _old_name,
        _environment_in_the_patch,
        _unknown_container,
        _plain_manager,
        _text_for_a_number,
        _unknown_runtime,
        _reserved_variable,
        _long_name,
    ],
)
def test_the_check_can_fail(damage: Any) -> None:
    manifest = copy.deepcopy(job())
    damage(manifest)
    with pytest.raises(RefusalError):
        check_train_job(manifest, RUNTIMES)


def test_every_node_runs_torchrun_with_the_job_file() -> None:
    trainer = job()["spec"]["trainer"]
    assert trainer["image"] == IMAGE
    assert trainer["numNodes"] == 3
    assert trainer["numProcPerNode"] == 4
    assert [*trainer["command"], *trainer["args"]] == [
        "python",
        "-m",
        "torch.distributed.run",
        "--nnodes=3",
        "--nproc-per-node=4",
        "-m",
        "plmsae.training.worker",
        "/state/job.json",
    ]


def test_a_gpu_for_each_process_and_requests_equal_limits() -> None:
    resources = job(Placement(gpu_type="amd.com/gpu"))["spec"]["trainer"]["resourcesPerNode"]
    assert resources["limits"] == {"cpu": "16", "memory": "64Gi", "amd.com/gpu": "4"}
    assert resources["requests"] == resources["limits"]
    on_cpus = job(Placement(gpu_type=None))["spec"]["trainer"]["resourcesPerNode"]
    assert on_cpus["limits"] == {"cpu": "16", "memory": "64Gi"}


def test_the_state_volume_is_where_the_task_has_it() -> None:
    pod = pod_of(job(state_claim="claim", state_folder="/where"))
    (volume,) = [item for item in pod["volumes"] if "persistentVolumeClaim" in item]
    assert volume["persistentVolumeClaim"] == {"claimName": "claim"}
    (container,) = pod["containers"]
    mounts = {item["name"]: item["mountPath"] for item in container["volumeMounts"]}
    assert mounts[volume["name"]] == "/where"
    assert set(mounts) == {item["name"] for item in pod["volumes"]}


def test_shared_memory_lies_in_memory_and_has_the_size() -> None:
    pod = pod_of(job(Placement(shared_memory="48Gi")))
    (volume,) = [item for item in pod["volumes"] if item.get("emptyDir", {}).get("medium") == "Memory"]
    assert volume["emptyDir"]["sizeLimit"] == "48Gi"
    (container,) = pod["containers"]
    assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("cloud", "label", "taints"),
    [
        ("gke", ("cloud.google.com/gke-spot", "true"), 1),
        ("aks", ("kubernetes.azure.com/scalesetpriority", "spot"), 1),
        ("eks", ("eks.amazonaws.com/capacityType", "SPOT"), 0),
        ("karpenter", ("karpenter.sh/capacity-type", "spot"), 0),
    ],
)
def test_spot_nodes_are_asked_for_beside_what_is_named(cloud: Any, label: tuple[str, str], taints: int) -> None:
    pod = pod_of(job(Placement(node_selector={"pool": "gpu"}, tolerations=[Toleration(key="gpu")], spot=cloud)))
    assert pod["nodeSelector"] == dict([("pool", "gpu"), label])
    added = [{"key": label[0], "operator": "Equal", "value": label[1], "effect": "NoSchedule"}]
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}, *added[:taints]]


def test_equal_work_has_one_name() -> None:
    assert job_name(KEY) == job()["metadata"]["name"] == "plmsae-" + KEY[:24]
    assert len(job_name(KEY) + "-node-0-999-abcde") <= 63


def test_a_placement_file_names_what_is_wrong_and_where(tmp_path: Path) -> None:
    file = tmp_path / "placement.yaml"
    file.write_text("spot: eks\nnode_selector: {team: a}\nshared_memory: 8Gi\ntolerations:\n  - {key: a}\n")
    read = read_placement(file)
    assert read.labels == {"team": "a", "eks.amazonaws.com/capacityType": "SPOT"}
    assert read.taints == [{"key": "a", "operator": "Exists"}]
    assert read_placement(None) == Placement()
    for text, problem in (
        ("gpu_typ: a\n", "gpu_type"),
        ("shared_memory: 8 GB\n", "line 1"),
        ("spot: aws\n", "placement.spot"),
        ("node_selector: {a: 'b c'}\n", "not a label"),
        ("- a\n", "mapping"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_placement(file)
    with pytest.raises(UserError, match="does not exist"):
        read_placement(tmp_path / "none.yaml")


GUIDE = (Path(__file__).parents[2] / "docs" / "how-to" / "multi-node.md").read_text(encoding="utf-8")


def test_the_guide_shows_every_line_of_a_placement_with_its_default() -> None:
    (block,) = [part for part in GUIDE.split("\n\n") if part.startswith("    gpu_type:")]
    shown = yaml.safe_load(textwrap.dedent(block))
    assert list(shown) == list(Placement.model_fields)
    assert Placement.model_validate({**shown, "spot": None}) == Placement()
    assert Placement.model_validate(shown).spot == "gke"


def test_the_command_of_the_guide_is_one(tmp_path: Path) -> None:
    (block,) = [part for part in GUIDE.split("\n\n") if part.startswith("    plmsae submit")]
    args = build_parser("submit").parse_args(shlex.split(block.replace("\\\n", " "))[1:])
    file = ParamsFile(Path(__file__).parents[2] / "params.yaml", args.set)
    assert ranks(file)["train_sae"] == (2, 8)
    assert (args.state_claim, args.service_account) == ("plmsae-state", "plmsae-runner")
