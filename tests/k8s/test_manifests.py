"""k8s/: every object against the strict schemas of Kubernetes, and the rules of tests/k8s/manifests.py on every pod."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest

from plmsae.stages.components import EXAMPLE_IMAGE
from tests.cluster.trainer_server import check_runtime
from tests.k8s.kustomize import FIELDS
from tests.k8s.manifests import K8S, ROOT, Document, containers, documents, load, pod_spec, problems, references

DOCUMENTS = documents()
BASE = documents(K8S / "base")
PODS = [document for document in DOCUMENTS if pod_spec(document.data)]
VERSION = kubernetes_validate.latest_version()


def pod_of(document: Document) -> dict[str, Any]:
    pod = pod_spec(document.data)
    assert pod is not None
    return pod


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = [item.data for item in BASE if (item.data["kind"], item.data["metadata"]["name"]) == (kind, name)]
    return found


def keys(kind: str) -> dict[str, set[str]]:
    """Name -> keys of every settings map or secret, the examples included."""
    found = [item.data for item in DOCUMENTS if item.data["kind"] == kind]
    return {data["metadata"]["name"]: set(data.get("data") or data.get("stringData")) for data in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.id)
def test_every_object_fits_the_strict_schema(document: Document) -> None:
    if document.data["apiVersion"].startswith("trainer.kubeflow.org/"):  # no kind of Kubernetes; its API has models
        check_runtime(document.data)
    else:
        kubernetes_validate.validate(document.data, VERSION, strict=True)


def _unknown_field(data: dict[str, Any]) -> None:
    data["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}


def _wrong_type(data: dict[str, Any]) -> None:
    data["spec"]["replicas"] = "one"


def _missing(data: dict[str, Any]) -> None:
    del data["spec"]["selector"]


@pytest.mark.parametrize("damage", [_unknown_field, _wrong_type, _missing])
def test_the_schema_check_can_fail(damage: Callable[[dict[str, Any]], None]) -> None:
    data = copy.deepcopy(one("Deployment", "plmsae-mlflow"))
    damage(data)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(data, VERSION, strict=True)


def test_a_kind_without_a_schema_is_not_passed_over() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pods", "metadata": {}}, VERSION, strict=True)


@pytest.mark.parametrize("path", sorted(K8S.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_a_kustomization_lists_every_file_beside_it(path: Any) -> None:
    (data,) = load(path)
    assert set(data) <= FIELDS
    assert data["apiVersion"].startswith("kustomize.config.k8s.io/")
    beside = sorted(file.name for file in path.parent.iterdir() if file.name != path.name)
    assert sorted(name for name in data["resources"] if not name.startswith("../")) == beside


def test_every_component_is_in_an_overlay() -> None:
    used = {
        (path.parent / name).resolve()
        for path in K8S.glob("overlays/*/kustomization.yaml")
        for name in load(path)[0]["components"]
    }
    assert used == {path.parent for path in K8S.glob("components/*/kustomization.yaml")}


def test_what_is_in_no_kustomization_is_an_example() -> None:
    used = {path.parent for path in K8S.rglob("kustomization.yaml")}
    for path in K8S.rglob("*.yaml"):
        assert path.parent in used or path.name.endswith(".example.yaml"), path


def test_the_base_is_what_the_readme_says() -> None:
    found = sorted(f"{item.data['kind']} {item.data['metadata']['name']}" for item in BASE)
    assert found == [
        "ConfigMap plmsae",
        "Deployment plmsae-mlflow",
        "Role plmsae-runner",
        "RoleBinding plmsae-runner",
        "Service plmsae-mlflow",
        "Service plmsae-object-store",
        "Service plmsae-postgres",
        "ServiceAccount plmsae-promoter",
        "ServiceAccount plmsae-runner",
        "StatefulSet plmsae-object-store",
        "StatefulSet plmsae-postgres",
    ]
    text = (K8S / "README.md").read_text(encoding="utf-8")
    for item in DOCUMENTS:
        if item.data["kind"] not in ("Secret", "Job"):
            assert f"`{item.data['metadata']['name']}`" in text, item.id


def test_names_are_unique_and_no_namespace_is_fixed() -> None:
    names = [(item.data["kind"], item.data["metadata"].get("name")) for item in BASE]
    assert len(names) == len(set(names))
    for item in DOCUMENTS:
        assert "namespace" not in item.data["metadata"], item.id
        assert "namespace:" not in item.path.read_text(encoding="utf-8")
        assert item.data["kind"] not in {"ClusterRole", "ClusterRoleBinding"}
        assert item.data["kind"] != "Namespace" or item.path.parent == K8S / "components" / "namespace"


@pytest.mark.parametrize("document", PODS, ids=lambda document: document.id)
def test_every_pod_keeps_the_rules(document: Document) -> None:
    assert problems(pod_of(document)) == []


@pytest.mark.parametrize(
    ("where", "change", "expected"),
    [
        ("pod", {"securityContext": {"runAsNonRoot": True, "runAsUser": 0}}, "may run as root"),
        ("pod", {"securityContext": {}}, "may run as root"),
        ("pod", {"hostNetwork": True}, "hostNetwork"),
        ("pod", {"automountServiceAccountToken": True}, "token"),
        ("pod", {"volumes": [{"name": "tmp", "emptyDir": {}}]}, "without a limit"),
        ("pod", {"volumes": [{"name": "tmp", "hostPath": {"path": "/"}}]}, "hostPath"),
        ("container", {"securityContext": {"allowPrivilegeEscalation": False}}, "writes to its root"),
        ("container", {"securityContext": {"readOnlyRootFilesystem": True}}, "may gain privileges"),
        ("container", {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}, "capabilities"),
        ("container", {"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}, "has no limits"),
        ("container", {"image": "docker.io/library/postgres:latest"}, "not named by digest"),
        ("container", {"image": "docker.io/library/postgres:latest@sha256:" + 64 * "0"}, "not named by digest"),
        ("container", {"env": [{"name": "POSTGRES_PASSWORD", "value": "secret"}]}, "carries the value"),
    ],
)
def test_every_rule_can_fail(where: str, change: dict[str, Any], expected: str) -> None:
    pod = copy.deepcopy(one("Deployment", "plmsae-mlflow")["spec"]["template"]["spec"])
    (pod if where == "pod" else pod["containers"][0]).update(change)
    assert any(expected in problem for problem in problems(pod))


@pytest.mark.parametrize("document", PODS, ids=lambda document: document.id)
def test_what_a_pod_reads_and_mounts_exists(document: Document) -> None:
    pod = pod_of(document)
    known = {"Secret": keys("Secret"), "ConfigMap": keys("ConfigMap")}
    for kind, name, key in references(pod):
        assert name in known[kind], f"{kind} {name}"
        assert not key or key in known[kind][name], f"{kind} {name}: {key}"
    claims = {claim["metadata"]["name"] for claim in document.data["spec"].get("volumeClaimTemplates", ())}
    volumes = {volume["name"] for volume in pod.get("volumes", ())} | claims
    mounts = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", ())}
    assert mounts == volumes
    accounts = {item.data["metadata"]["name"] for item in DOCUMENTS if item.data["kind"] == "ServiceAccount"}
    assert pod.get("serviceAccountName") in {None, *accounts}


def test_secrets_are_examples_only_and_hold_no_real_value() -> None:
    assert not [item.id for item in BASE if item.data["kind"] == "Secret"]
    for item in DOCUMENTS:
        if item.data["kind"] == "Secret":
            for key, value in item.data["stringData"].items():
                if key != "s3.json":
                    assert value.startswith("REPLACE_ME"), (item.id, key)


def test_the_object_store_gives_each_identity_its_own_bucket() -> None:
    secrets = {
        item.data["metadata"]["name"]: item.data["stringData"] for item in DOCUMENTS if "stringData" in item.data
    }
    identities = {item["name"]: item for item in json.loads(secrets["plmsae-object-store"]["s3.json"])["identities"]}
    holders = {"mlflow": ("plmsae-mlflow-s3", "plmsae-mlflow"), "tasks": ("plmsae-s3", "plmsae")}
    assert set(identities) == set(holders)
    for name, (secret, bucket) in holders.items():
        (key,) = identities[name]["credentials"]
        assert key["accessKey"] == secrets[secret]["AWS_ACCESS_KEY_ID"]
        assert key["secretKey"] == secrets[secret]["AWS_SECRET_ACCESS_KEY"]
        assert {action.partition(":")[2] for action in identities[name]["actions"]} == {bucket}
        assert {action.partition(":")[0] for action in identities[name]["actions"]} == {
            "Read",
            "Write",
            "List",
            "Tagging",
        }
    store = one("StatefulSet", "plmsae-object-store")["spec"]["template"]["spec"]["containers"][0]
    (made,) = re.findall(r"for bucket in (.*); do", store["lifecycle"]["postStart"]["exec"]["command"][-1])
    assert made.split() == ["plmsae", "plmsae-mlflow"]
    (destination,) = [
        argument.partition("=")[2]
        for argument in one("Deployment", "plmsae-mlflow")["spec"]["template"]["spec"]["containers"][0]["args"]
        if argument.startswith("--artifacts-destination=")
    ]
    assert urlsplit(destination).netloc == "plmsae-mlflow"


# In place of SeaweedFS's shell: the same output, a prompt and then a line per bucket.
_WEED = """#!/bin/sh
read command option name
case "$command" in
  s3.bucket.list) printf '> '; sed 's/.*/  &\tsize:0\tchunk:0/' {folder}/buckets ;;
  s3.bucket.create) echo "$name" >> {folder}/buckets ;;
esac
"""
# The gateway answers from the third time on.
_WGET = """#!/bin/sh
echo asked >> {folder}/asked
[ "$(wc -l < {folder}/asked)" -ge {answers_at} ]
"""


def _start_the_store(folder: Path, present: str, answers_at: int = 3) -> int:
    store = one("StatefulSet", "plmsae-object-store")["spec"]["template"]["spec"]["containers"][0]
    *shell, script = store["lifecycle"]["postStart"]["exec"]["command"]
    (folder / "buckets").write_text(present)
    for name, text in (("weed", _WEED), ("wget", _WGET)):
        (folder / name).write_text(text.format(folder=folder, answers_at=answers_at))
        (folder / name).chmod(0o755)
    script = script.replace("/usr/bin/weed", str(folder / "weed")).replace("sleep 2", "sleep 0")
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run([*shell, script], env=environment, check=False, timeout=60).returncode


@pytest.mark.parametrize("present", ["", "plmsae\nplmsae-mlflow\n", "plmsae-mlflow\nother\n"])
def test_the_object_store_makes_the_buckets_that_are_missing(present: str, tmp_path: Path) -> None:
    assert _start_the_store(tmp_path, present) == 0
    expected = [*present.split(), *(name for name in ("plmsae", "plmsae-mlflow") if name not in present.split())]
    assert (tmp_path / "buckets").read_text().split() == expected


def test_an_object_store_that_never_answers_is_started_again(tmp_path: Path) -> None:
    assert _start_the_store(tmp_path, "", answers_at=1000) == 1
    assert (tmp_path / "buckets").read_text() == ""


def test_the_parts_of_the_object_store_without_passwords_listen_to_their_pod_only() -> None:
    arguments = one("StatefulSet", "plmsae-object-store")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0", "-master.telemetry=false"} <= set(arguments)
    assert any(argument.startswith("-s3.config=") for argument in arguments)


@pytest.mark.parametrize("document", PODS, ids=lambda document: document.id)
def test_selectors_match_their_pods(document: Document) -> None:
    spec = document.data["spec"]
    if "selector" in spec:
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    if document.data["kind"] == "StatefulSet":
        assert one("Service", spec["serviceName"])


def test_every_service_reaches_exactly_one_workload_by_a_named_port() -> None:
    services = [item.data for item in BASE if item.data["kind"] == "Service"]
    assert len(services) == 3
    for service in services:
        selector = service["spec"]["selector"].items()
        (found,) = [
            item.data
            for item in BASE
            if pod_spec(item.data) and selector <= item.data["spec"]["template"]["metadata"]["labels"].items()
        ]
        pod = pod_spec(found)
        assert pod is not None
        ports = {port["name"]: port["containerPort"] for container in containers(pod) for port in container["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
        for container in containers(pod):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if "httpGet" in container.get(probe, {}):
                    assert container[probe]["httpGet"]["port"] in ports


def test_addresses_name_services_and_their_ports() -> None:
    services = {
        (item.data["metadata"]["name"], port["port"])
        for item in BASE
        if item.data["kind"] == "Service"
        for port in item.data["spec"]["ports"]
    }
    settings = one("ConfigMap", "plmsae")["data"]
    server = one("Deployment", "plmsae-mlflow")["spec"]["template"]["spec"]["containers"][0]
    (database,) = [item["value"] for item in server["env"] if item["name"] == "MLFLOW_BACKEND_STORE_URI"]
    addresses = [
        settings["MLFLOW_TRACKING_URI"],
        settings["AWS_ENDPOINT_URL"],
        database.replace("$(", "").replace(")", ""),
    ]
    for address in addresses:
        parts = urlsplit(address)
        assert (parts.hostname, parts.port) in services, address


def test_the_runner_can_do_only_what_a_task_needs_and_the_promoter_nothing() -> None:
    (role,) = [item.data for item in BASE if item.data["kind"] == "Role"]
    (binding,) = [item.data for item in BASE if item.data["kind"] == "RoleBinding"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "plmsae-runner"}]
    allowed = {
        (resource, verb, name)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    assert allowed == {
        ("workflowtaskresults", "create", ""),
        ("workflowtaskresults", "patch", ""),
        ("pods", "get", ""),
        ("pods", "list", ""),
        ("configmaps", "get", "kfp-launcher"),
        ("secrets", "get", "mlpipeline-minio-artifact"),
    }
    assert one("ServiceAccount", "plmsae-promoter")["automountServiceAccountToken"] is False


def test_our_own_image_is_the_example_that_an_overlay_replaces() -> None:
    ours = [
        container["image"] for item in PODS for container in containers(pod_of(item)) if "plmsae" in container["image"]
    ]
    assert set(ours) == {EXAMPLE_IMAGE}


def _platform() -> list[dict[str, Any]]:
    """The Kubernetes settings of every task of the compiled pipelines."""
    found = []
    for path in sorted((ROOT / "pipelines").glob("*.yaml")):
        for data in load(path):
            kubernetes = data.get("platforms", {}).get("kubernetes", {})
            found += list(kubernetes.get("deploymentSpec", {}).get("executors", {}).values())
    return found


def test_what_the_compiled_pipelines_read_is_in_the_manifests() -> None:
    tasks = _platform()
    assert tasks
    for task in tasks:
        for field, name_field, key_field, kind in (
            ("configMapAsEnv", "configMapName", "configMapKey", "ConfigMap"),
            ("secretAsEnv", "secretName", "secretKey", "Secret"),
        ):
            for entry in task.get(field, ()):
                known = keys(kind)[entry[name_field]]
                assert {item[key_field] for item in entry["keyToEnv"]} <= known, entry[name_field]


def test_the_gpu_pool_of_the_pipelines_is_the_documented_one() -> None:
    text = (K8S / "README.md").read_text(encoding="utf-8")
    selectors = [task["nodeSelector"]["labels"] for task in _platform() if "nodeSelector" in task]
    tolerations = [item["key"] for task in _platform() for item in task.get("tolerations", ())]
    for key, value in [pair for labels in selectors for pair in labels.items()]:
        assert f"{key}={value}" in text
    for key in tolerations:
        assert f"{key}=" in text
    assert "plmsae.io/pool=gpu" in text
    assert "nvidia.com/gpu=" in text
