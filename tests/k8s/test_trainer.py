"""k8s/components/trainer: the rights, the runtime, and the pods that a TrainJob makes of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from plmsae.cluster.placement import Placement
from plmsae.cluster.tasks import SETTINGS_MAP
from plmsae.cluster.train_job import DATA_SECRET, NODE
from tests.cluster.test_train_job import job, pod_of
from tests.cluster.trainer_server import check_runtime, runtime
from tests.k8s.manifests import K8S, documents, load, problems, references
from tests.k8s.test_manifests import keys

OBJECTS = {item.data["kind"]: item.data for item in documents(K8S / "components" / "trainer")}


def merged(manifest: dict[str, Any], of: dict[str, Any] | None = None) -> dict[str, Any]:
    """The pod of a node: the runtime's, with what the job says, as the operator puts them together."""
    (node,) = copy.deepcopy(of or runtime())["spec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    patch = copy.deepcopy(pod_of(manifest))
    (container,), (changes,) = pod["containers"], patch.pop("containers")
    trainer = manifest["spec"]["trainer"]
    container |= changes | {"image": trainer["image"], "env": trainer["env"], "resources": trainer["resourcesPerNode"]}
    return pod | patch


@pytest.mark.parametrize("placement", [Placement(), Placement(gpu_type=None, spot="gke")])
def test_the_pods_of_a_job_keep_the_rules(placement: Placement) -> None:
    assert problems(merged(job(placement))) == []


def test_the_pods_of_a_job_read_what_the_tasks_read() -> None:
    known = {"ConfigMap": keys("ConfigMap"), "Secret": keys("Secret")}
    found = references(merged(job()))
    assert {name for _, name, _ in found} == {SETTINGS_MAP, DATA_SECRET}
    for kind, name, key in found:
        assert key in known[kind][name]


def test_the_rights_are_the_runners_alone_and_the_workers_have_none() -> None:
    binding, role, account = OBJECTS["RoleBinding"], OBJECTS["Role"], OBJECTS["ServiceAccount"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "plmsae-runner"}]
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert allowed == {
        ("trainer.kubeflow.org", "trainjobs", "create"),
        ("trainer.kubeflow.org", "trainjobs", "get"),
        ("trainer.kubeflow.org", "trainjobs", "delete"),
        ("", "pods", "list"),
        ("", "pods/log", "get"),
    }
    assert account["metadata"]["name"] == Placement().service_account
    assert account["automountServiceAccountToken"] is False


def test_the_runtime_is_the_one_that_jobs_name() -> None:
    found = OBJECTS["TrainingRuntime"]
    assert found["metadata"]["name"] == Placement().runtime
    assert found["kind"] == Placement().runtime_kind
    assert found["spec"]["mlPolicy"]["torch"] == {}
    (node,) = found["spec"]["template"]["spec"]["replicatedJobs"]
    # The operator finds the node by this label, and its container by this name.
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert [item["name"] for item in node["template"]["spec"]["template"]["spec"]["containers"]] == [NODE]


def test_one_lost_node_starts_all_anew_and_never_alone() -> None:
    template = runtime()["spec"]["template"]["spec"]
    (node,) = template["replicatedJobs"]
    assert template["failurePolicy"]["maxRestarts"] > 0
    assert node["template"]["spec"]["backoffLimit"] == 0
    assert node["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_schema_check_of_the_runtime_can_fail() -> None:
    damaged = copy.deepcopy(runtime())
    damaged["spec"]["mlPolicy"]["pytorch"] = {}
    with pytest.raises(AssertionError):
        check_runtime(damaged)


def test_nothing_of_trainer_is_in_the_base() -> None:
    for path in (K8S / "base").glob("*.yaml"):
        for data in load(path):
            assert "trainer.kubeflow.org" not in str(data)
