"""k8s/overlays, put together: schemas, rules on every object, who reaches whom, and what fits into the quotas."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from plmsae.artifacts.sources import is_remote
from plmsae.cli import build_parser
from plmsae.errors import DataError, GateError, TryAgainError, UserError
from plmsae.registry.versions import registry_name
from plmsae.stages.catalog import stages
from plmsae.stages.components import EXAMPLE_IMAGE
from tests.cluster.test_train_job import job
from tests.cluster.trainer_server import check_runtime
from tests.k8s.kustomize import RefusedError, render
from tests.k8s.manifests import IMAGE, K8S, ROOT, containers, load, pod_spec, problems, references
from tests.k8s.network import Peer, allowed, selects
from tests.k8s.policies import FINAL, of, violations
from tests.k8s.test_trainer import merged

Data = dict[str, Any]
NAMES = ("laptop", "production")
OVERLAYS = {name: render(K8S / "overlays" / name) for name in NAMES}
VERSION = kubernetes_validate.latest_version()
OBJECTS = [
    pytest.param(name, item, id=f"{name}:{item['kind']}/{item['metadata']['name']}")
    for name, items in OVERLAYS.items()
    for item in items
]
KUBECTL = shutil.which("kubectl")


def key(item: Data) -> tuple[str, str]:
    return item["kind"], item["metadata"]["name"]


def checked(name: str, objects: list[Data]) -> list[str]:
    return violations(objects, loaded_images=name == "laptop")


@pytest.mark.parametrize(("overlay", "item"), OBJECTS)
def test_every_rendered_object_fits_the_strict_schema(overlay: str, item: Data) -> None:
    if item["apiVersion"].startswith("trainer.kubeflow.org/"):
        check_runtime(item)
    else:
        kubernetes_validate.validate(item, VERSION, strict=True)


@pytest.mark.parametrize("overlay", NAMES)
def test_every_rendered_object_keeps_the_rules(overlay: str) -> None:
    assert checked(overlay, OVERLAYS[overlay]) == []


def _set(kind: str, name: str, path: str, value: Any) -> Callable[[list[Data]], None]:
    """A damage: another value at a path; the value None removes it."""

    def damage(objects: list[Data]) -> None:
        item: Any = of(objects, kind)[name]
        *parents, last = path.split("/")
        for part in parents:
            item = item[int(part)] if part.isdigit() else item.setdefault(part, {})
        if value is None:
            del item[last]
        else:
            item[int(last) if last.isdigit() else last] = value

    return damage


def _add(item: Data) -> Callable[[list[Data]], None]:
    return lambda objects: objects.append({**item, "metadata": {"name": "new", "namespace": "plmsae"}})


def _drop(kind: str, name: str) -> Callable[[list[Data]], None]:
    return lambda objects: objects.remove(of(objects, kind)[name])


def _drop_all(kind: str) -> Callable[[list[Data]], None]:
    def damage(objects: list[Data]) -> None:
        objects[:] = [item for item in objects if item["kind"] != kind]

    return damage


_MLFLOW = "spec/template/spec"
_CONTAINER = f"{_MLFLOW}/containers/0"
_EGRESS = "spec/egress/0"
_JOB = "spec/jobTemplate/spec"
_ALL = {"ipBlock": {"cidr": "0.0.0.0/0"}}
_IMAGE = f"{_CONTAINER}/image"
DAMAGES: list[tuple[Callable[[list[Data]], None], str]] = [
    (_drop("Namespace", "plmsae"), "0 namespaces"),
    (_set("Role", "plmsae-runner", "metadata/namespace", "other"), "is in another namespace"),
    (_add({"kind": "ClusterRole"}), "a kind without a rule"),
    (_add({"kind": "Secret"}), "a kind without a rule"),
    (_set("Deployment", "plmsae-mlflow", _IMAGE, "registry.example.org/plmsae:0.1.0"), "not named by digest"),
    (_set("Deployment", "plmsae-mlflow", _IMAGE, "localhost/plmsae:latest"), "not named by digest"),
    (_set("Deployment", "plmsae-mlflow", f"{_MLFLOW}/automountServiceAccountToken", None), "mounts a token"),
    (_set("Deployment", "plmsae-mlflow", f"{_MLFLOW}/securityContext/runAsNonRoot", False), "may run as root"),
    (_set("Deployment", "plmsae-mlflow", f"{_MLFLOW}/securityContext/seccompProfile", None), "no seccomp"),
    (_set("Deployment", "plmsae-mlflow", f"{_CONTAINER}/securityContext/capabilities/drop", ["NET_RAW"]), "capabilit"),
    (_set("Deployment", "plmsae-mlflow", f"{_CONTAINER}/securityContext/readOnlyRootFilesystem", False), "its root"),
    (_set("Deployment", "plmsae-mlflow", f"{_CONTAINER}/resources/limits", None), "has no limits"),
    (_set("Deployment", "plmsae-mlflow", f"{_MLFLOW}/serviceAccountName", "admin"), "an account that does not exist"),
    (_drop("ServiceAccount", "default"), "`default` keeps its token"),
    (_set("ServiceAccount", "plmsae-promoter", "automountServiceAccountToken", None), "no use for it"),
    (_drop_all("RoleBinding"), "plmsae-runner has a token and no use for it"),
    (_set("RoleBinding", "plmsae-runner", "roleRef/kind", "ClusterRole"), "a role from elsewhere"),
    (_set("RoleBinding", "plmsae-runner", "roleRef/name", "admin"), "a role from elsewhere"),
    (_set("RoleBinding", "plmsae-runner", "subjects/0/name", "default"), "is for ServiceAccount default"),
    (_set("RoleBinding", "plmsae-runner", "subjects/0/namespace", "other"), "is for ServiceAccount plmsae-runner"),
    (_set("RoleBinding", "plmsae-runner", "subjects/0/kind", "Group"), "is for Group"),
    (_set("Role", "plmsae-runner", "rules/1/verbs", ["*"]), "role plmsae-runner has *"),
    (_set("Role", "plmsae-runner", "rules/1/resources", ["*"]), "role plmsae-runner has *"),
    (_set("Role", "plmsae-runner", "rules/1/apiGroups", ["*"]), "role plmsae-runner has *"),
    (_set("Role", "plmsae-runner", "rules/1/resources", ["pods/exec"]), "has pods/exec"),
    (_set("Role", "plmsae-runner", "rules/1/verbs", ["create"]), "changes ['pods']"),
    (_set("Role", "plmsae-runner", "rules/3/resourceNames", None), "more than one object by its name"),
    (_set("Role", "plmsae-runner", "rules/3/verbs", ["get", "list"]), "more than one object by its name"),
    (_drop("NetworkPolicy", "plmsae-default-deny"), "no policy denies all"),
    (_set("NetworkPolicy", "plmsae-default-deny", "spec/policyTypes", ["Ingress"]), "no policy denies all"),
    (_set("NetworkPolicy", "plmsae-default-deny", "spec/podSelector", {"matchLabels": {"a": "b"}}), "denies all"),
    (_drop("NetworkPolicy", "plmsae-mlflow"), "nobody may reach plmsae-mlflow"),
    (_set("NetworkPolicy", "plmsae-mlflow", "spec/egress", [{}]), "a way out has a name of its own"),
    (_set("NetworkPolicy", "plmsae-mlflow", "spec/ingress/0/from", None), "names nobody"),
    (_set("NetworkPolicy", "plmsae-mlflow", "spec/ingress/0/from/0/podSelector", {}), "every pod of the namespace"),
    (_set("NetworkPolicy", "plmsae-tasks-to-mlflow", "spec/policyTypes", ["Ingress"]), "a name of its own"),
    (_set("NetworkPolicy", "plmsae-tasks-to-mlflow", f"{_EGRESS}/to", []), "names nobody"),
    (_set("NetworkPolicy", "plmsae-tasks-to-mlflow", f"{_EGRESS}/ports", None), "names no port"),
    (
        _set("NetworkPolicy", "plmsae-tasks-to-kubernetes", f"{_EGRESS}/to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}]),
        "half",
    ),
    (_set("NetworkPolicy", "plmsae-tasks-to-kubeflow", f"{_EGRESS}/to/0/namespaceSelector", {}), "without a name"),
    (_drop("ResourceQuota", "plmsae"), "no ResourceQuota"),
    (_drop("LimitRange", "plmsae"), "no LimitRange"),
    (_set("ResourceQuota", "plmsae", "spec/hard/limits.memory", None), "no quota for limits.memory"),
    (_set("ResourceQuota", "plmsae", "spec/hard/services.nodeports", "1"), "quota for services.nodeports"),
    (_set("LimitRange", "plmsae", "spec/limits/0/default", None), "without a limit of their own"),
    (_set("Service", "plmsae-mlflow", "spec/type", "LoadBalancer"), "reached from outside"),
    (_set("Service", "plmsae-mlflow", "spec/externalIPs", ["192.0.2.7"]), "reached from outside"),
    (_set("ConfigMap", "plmsae", "data/KEY", "AKIAABCDEFGHIJKLMNOP"), "carries a secret"),
    (
        _set("ConfigMap", "plmsae", "data/MLFLOW_TRACKING_URI", "http://me:secret@plmsae-mlflow"),
        "carries a secret",
    ),
    (_set("Deployment", "plmsae-mlflow", f"{_CONTAINER}/args/0", "--password=hunter2"), "carries a secret"),
    (_set("ConfigMap", "plmsae", "data/KEY", "token: x7"), "carries a secret"),
    *(
        (_set("CronJob", "plmsae-reevaluate", path, value), expected)
        for path, value, expected in (
            ("spec/suspend", False, "before anybody has named"),
            ("spec/suspend", None, "before anybody has named"),
            ("spec/concurrencyPolicy", "Allow", "may run twice"),
            ("spec/timeZone", None, "clock of some node"),
            ("spec/startingDeadlineSeconds", None, "never too late"),
            ("spec/failedJobsHistoryLimit", None, "how many pods it keeps"),
            (f"{_JOB}/activeDeadlineSeconds", None, "may run for ever"),
            (f"{_JOB}/template/spec/restartPolicy", "OnFailure", "whatever its exit code"),
            (f"{_JOB}/podFailurePolicy", None, "what cannot succeed"),
            (f"{_JOB}/podFailurePolicy/rules/0/onExitCodes/values", [2, 3], "what cannot succeed"),
            (f"{_JOB}/podFailurePolicy/rules/0/onExitCodes/values", [2, 3, 4, 75], "or not what may"),
            (f"{_JOB}/podFailurePolicy/rules/0/onExitCodes/operator", "NotIn", "what cannot succeed"),
            (f"{_JOB}/podFailurePolicy/rules/0/onExitCodes/containerName", "other", "what cannot succeed"),
            (f"{_JOB}/podFailurePolicy/rules/0/action", "Count", "what cannot succeed"),
            (f"{_JOB}/template/metadata/labels", {"app": "x"}, "reaches nothing"),
            (f"{_JOB}/template/spec/volumes/1", {"name": "workspace", "emptyDir": {"sizeLimit": "1Gi"}}, "outlives"),
            (f"{_JOB}/template/spec/volumes/1/persistentVolumeClaim/claimName", "none", "outlives"),
            (f"{_JOB}/template/spec/serviceAccountName", "admin", "an account that does not exist"),
            (f"{_JOB}/template/spec/automountServiceAccountToken", None, "mounts a token"),
            (f"{_JOB}/template/spec/containers/0/securityContext/readOnlyRootFilesystem", False, "its root"),
            (f"{_JOB}/template/spec/containers/0/resources/limits", None, "has no limits"),
            (f"{_JOB}/template/spec/containers/0/image", "docker.io/library/plmsae:latest", "named by digest"),
            (f"{_JOB}/template/spec/containers/0/env/7", {"name": "TOKEN", "value": "x"}, "carries the value"),
        )
    ),
    (_set("ServiceAccount", "plmsae-reevaluator", "automountServiceAccountToken", None), "no use for it"),
    (_drop("PersistentVolumeClaim", "plmsae-reevaluate"), "no volume that outlives it"),
]


@pytest.mark.parametrize("overlay", NAMES)
@pytest.mark.parametrize(("damage", "expected"), DAMAGES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_rule_can_fail(overlay: str, damage: Callable[[list[Data]], None], expected: str) -> None:
    objects = copy.deepcopy(OVERLAYS[overlay])
    damage(objects)
    assert any(expected in text for text in checked(overlay, objects)), checked(overlay, objects)


@pytest.mark.parametrize("mode", ["enforce", "warn", "audit"])
def test_a_namespace_that_admits_more_than_restricted_is_found(mode: str) -> None:
    objects = copy.deepcopy(OVERLAYS["production"])
    of(objects, "Namespace")["plmsae"]["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] = "baseline"
    assert any("not restricted" in text for text in checked("production", objects))


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in NAMES)])
def test_kubectl_puts_the_same_objects_together(folder: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    answer = subprocess.run(
        [str(KUBECTL), "kustomize", str(K8S / folder)], env=environment, capture_output=True, text=True, check=True
    )
    theirs = {key(item): item for item in yaml.safe_load_all(answer.stdout)}
    assert {key(item): item for item in render(K8S / folder)} == theirs


def test_what_the_reader_of_kustomizations_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n")

    def rendered(**fields: Any) -> list[Data]:
        text = yaml.safe_dump({"kind": "Kustomization", "resources": ["a.yaml"], **fields})
        (tmp_path / "kustomization.yaml").write_text(text)
        return render(tmp_path)

    target = {"kind": "ConfigMap", "name": "a"}
    for fields in (
        {"namePrefix": "x-"},
        {"kind": "Component"},
        {"resources": ["a.yaml", "a.yaml"]},
        {"labels": [{"pairs": {}, "includeSelectors": True}]},
        {"patches": [{"target": {**target, "name": "b"}, "patch": "[]"}]},
        {"patches": [{"target": target, "patch": "- {op: test, path: /data/k, value: w}"}]},
        {"patches": [{"target": target, "patch": "data: {k: [1]}"}]},
        {"patches": [{"target": target, "patch": "- {op: copy, path: /data/k}"}]},
        {"patches": [{"target": target, "patch": "- {op: replace, path: /data/none, value: w}"}]},
    ):
        with pytest.raises(RefusedError):
            rendered(**fields)
    (item,) = rendered(patches=[{"target": target, "patch": "- {op: add, path: /data/l, value: w}"}])
    assert item["data"] == {"k": "v", "l": "w"}


# Who is there: pods of the namespace by the labels that their makers give them, pods of others, and addresses.
INSIDE = {
    "mlflow": {"app.kubernetes.io/name": "plmsae-mlflow"},
    "postgres": {"app.kubernetes.io/name": "plmsae-postgres"},
    "object-store": {"app.kubernetes.io/name": "plmsae-object-store"},
    "task": {"workflows.argoproj.io/workflow": "run", "pipeline/runid": "1"},
    "worker": {"jobset.sigs.k8s.io/jobset-name": "plmsae-0"},
    "promoter": {"plmsae.io/role": "promoter"},
    "reevaluator": {"plmsae.io/role": "reevaluator"},
    "stranger": {"app": "other"},
}
OUTSIDE = {
    "dns": Peer("kube-system", {"k8s-app": "kube-dns"}),
    "kube-system": Peer("kube-system", {}),
    "kubeflow": Peer("kubeflow", {"app": "ml-pipeline"}),
    "team": Peer("team", {"workflows.argoproj.io/workflow": "run"}),
    "internet": Peer(address="9.9.9.9"),
}
PORTS = (53, 80, 443, 5000, 5432, 6443, 8080, 8333, 8887, 8888, 9000, 29500)
COMMON = {
    *((pod, "dns", 53) for pod in INSIDE),
    ("task", "mlflow", 5000),
    ("promoter", "mlflow", 5000),
    ("reevaluator", "mlflow", 5000),
    *(("task", "kubeflow", port) for port in (8080, 8333, 8887, 8888, 9000)),
    *(("worker", "worker", port) for port in PORTS),
}
WAYS = {
    "laptop": COMMON
    | {("mlflow", "postgres", 5432)}
    | {(pod, "object-store", 8333) for pod in ("mlflow", "task", "worker", "reevaluator")}
    | {("task", "kubernetes", port) for port in (443, 6443)},
    "production": COMMON
    | {("mlflow", "database", 5432)}
    | {(pod, "bucket", 443) for pod in ("mlflow", "task", "worker", "reevaluator")}
    | {(pod, "webhook", 443) for pod in ("task", "reevaluator")}
    | {("task", "kubernetes", port) for port in (443, 6443)},
}
ADDRESSES = {
    "laptop": {"kubernetes": "172.18.0.2"},
    "production": {
        "kubernetes": "192.0.2.10",
        "database": "198.51.100.10",
        "bucket": "203.0.113.7",
        "webhook": "198.51.100.20",
    },
}


@pytest.mark.parametrize("overlay", NAMES)
def test_who_reaches_whom_is_this_and_nothing_else(overlay: str) -> None:
    policies = list(of(OVERLAYS[overlay], "NetworkPolicy").values())
    peers = {name: Peer("plmsae", labels) for name, labels in INSIDE.items()} | OUTSIDE
    peers |= {name: Peer(address=address) for name, address in ADDRESSES[overlay].items()}
    found = {
        (source, target, port)
        for source in peers
        for target in peers
        for port in PORTS
        if (source in INSIDE or target in INSIDE) and allowed(policies, peers[source], peers[target], port)
    }
    assert found == WAYS[overlay]
    assert allowed(policies, peers["task"], peers["dns"], 53, "UDP")


def test_the_reader_of_policies_follows_their_api() -> None:
    """A pod that no policy selects is free; one that any selects has what they allow together, and no more."""

    def policy(name: str, spec: Data) -> Data:
        return {"metadata": {"name": name, "namespace": "n"}, "spec": {"policyTypes": ["Ingress"], **spec}}

    web, db, other = Peer("n", {"app": "web"}), Peer("n", {"app": "db"}), Peer("m", {"app": "web"})
    assert allowed([], web, db, 1)
    closed = policy("a", {"podSelector": {"matchLabels": {"app": "db"}}})
    assert not allowed([closed], web, db, 1)
    assert allowed([closed], db, web, 1)
    port = {"port": 1, "protocol": "TCP"}
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [port]}
    opened = [closed, policy("b", {"podSelector": {}, "ingress": [rule]})]
    assert allowed(opened, web, db, 1)
    assert not allowed(opened, web, db, 2)
    assert not allowed(opened, web, db, 1, "UDP")
    assert not allowed(opened, other, db, 1)
    assert allowed([closed, policy("c", {"podSelector": {}, "ingress": [{}]})], other, db, 9)
    with pytest.raises(ValueError, match="In"):
        selects({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {})


def number(text: str) -> float:
    """A quantity of Kubernetes as a number: cores, or bytes."""
    found = re.fullmatch(r"(\d+)(m|Mi|Gi|Ti)?", text)
    assert found is not None, text
    return int(found[1]) * {None: 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}[found[2]]


@pytest.mark.parametrize("overlay", NAMES)
def test_the_services_and_the_largest_task_fit_into_the_quota(overlay: str) -> None:
    objects = OVERLAYS[overlay]
    hard = of(objects, "ResourceQuota")["plmsae"]["spec"]["hard"]
    container, claim = of(objects, "LimitRange")["plmsae"]["spec"]["limits"]
    jobs, pods = ([pod_spec(item) for item in objects if (item["kind"] == "CronJob") == is_job] for is_job in (1, 0))
    pods = [pod for pod in pods if pod]
    (job,) = [
        containers(pod)[0]["resources"]["limits"] for pod in jobs if pod
    ]  # no larger than a task: one or the other
    for what, largest in (
        ("cpu", max(float(stage.resources.cpu) for stage in stages().values())),
        ("memory", max(stage.resources.memory_gib for stage in stages().values()) * 2.0**30),
    ):
        assert number(job[what]) <= largest
        assert largest <= number(container["max"][what])
        for kind, of_others in (("requests", "defaultRequest"), ("limits", "default")):
            services = sum(number(item["resources"][kind][what]) for pod in pods for item in containers(pod))
            # Argo puts two containers of its own into the pod of a task, and Kubeflow's driver runs before it.
            argo = 3 * number(container[of_others][what])
            assert services + largest + argo <= number(hard[f"{kind}.{what}"]), (kind, what)
    assert max(stage.resources.gpu for stage in stages().values()) <= int(hard["requests.nvidia.com/gpu"])
    claims = [item["spec"] for item in of(objects, "PersistentVolumeClaim").values()]
    claims += [entry["spec"] for item in objects for entry in item.get("spec", {}).get("volumeClaimTemplates", ())]
    sizes = [number(item["resources"]["requests"]["storage"]) for item in claims]
    # And the volume of a run of Argo (docs/how-to/argo.md).
    assert len(sizes) + 1 <= int(hard["persistentvolumeclaims"])
    assert sum(sizes) + number({"laptop": "20Gi", "production": "100Gi"}[overlay]) <= number(hard["requests.storage"])
    assert max(sizes) <= number(claim["max"]["storage"])


@pytest.mark.parametrize("overlay", NAMES)
def test_the_job_by_the_clock_is_the_stage_that_re_evaluates(overlay: str) -> None:
    """With its time and its resources, and with the parameters of `params.yaml`."""
    objects, stage = OVERLAYS[overlay], stages()["reevaluate"]
    job = of(objects, "CronJob")["plmsae-reevaluate"]["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    amounts = {"cpu": str(stage.resources.cpu), "memory": f"{stage.resources.memory_gib}Gi"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert job["activeDeadlineSeconds"] == stage.resources.timeout_hours * 3600
    arguments = build_parser("reevaluate").parse_args([*container["command"][1:], *container["args"]])
    assert is_remote(arguments.data)
    text = of(objects, "ConfigMap")["plmsae-reevaluate"]["data"][arguments.params.name]
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(text) == params, "run: make render"
    place, architecture = params["extract_activations"], params["train_sae"]["architecture"]
    name = registry_name(place["plm"], place["layer"], place["hook"], architecture)
    assert arguments.model == f"models:/{name}@champion", "what the default parameters register"
    mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
    volumes = {item["name"]: item for item in job["template"]["spec"]["volumes"]}
    assert volumes[mounts[str(arguments.params.parent)]]["configMap"] == {"name": "plmsae-reevaluate"}
    assert "persistentVolumeClaim" in volumes[mounts[container["workingDir"]]]


@pytest.mark.parametrize("overlay", NAMES)
def test_what_the_pods_read_is_there_or_a_secret_of_the_examples(overlay: str) -> None:
    secrets = {item["metadata"]["name"]: item["stringData"] for item in load(K8S / "examples" / "secrets.example.yaml")}
    maps = {name: item["data"] for name, item in of(OVERLAYS[overlay], "ConfigMap").items()}
    for pod in filter(None, map(pod_spec, OVERLAYS[overlay])):
        for kind, name, entry in references(pod):
            known = {"Secret": secrets, "ConfigMap": maps}[kind][name]
            assert not entry or entry in known


def test_production_has_no_database_and_no_object_store_of_its_own() -> None:
    objects = OVERLAYS["production"]
    assert not of(objects, "StatefulSet")
    assert set(of(objects, "Service")) == {"plmsae-mlflow"}
    assert "plmsae-postgres:" not in str(objects)
    assert "plmsae-object-store:" not in str(objects)
    for pod in filter(None, map(pod_spec, objects)):
        assert all(IMAGE.fullmatch(item["image"]) for item in containers(pod))


def test_production_runs_trainings_on_several_nodes_that_keep_the_rules() -> None:
    (runtime,) = of(OVERLAYS["production"], "TrainingRuntime").values()
    assert problems(merged(job(), runtime)) == []
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == EXAMPLE_IMAGE


def test_the_readme_lists_what_to_replace_in_production() -> None:
    text = (K8S / "README.md").read_text(encoding="utf-8")
    for path in (K8S / "overlays" / "production").iterdir():
        for example in re.findall(r"[\w.-]*example[\w.-]*|\d+\.\d+\.\d+\.\d+/\d+|eu-central-1", path.read_text()):
            assert example in text, example


def test_the_ways_of_the_network_are_in_the_readme() -> None:
    text = (K8S / "README.md").read_text(encoding="utf-8")
    for items in OVERLAYS.values():
        for name in of(items, "NetworkPolicy"):
            assert f"`{name}`" in text, name


def test_the_final_exit_codes_are_those_that_a_second_attempt_cannot_mend() -> None:
    assert {UserError("").exit_code, DataError("").exit_code, GateError("").exit_code} == FINAL
    assert TryAgainError("").exit_code not in FINAL


def test_the_rollback_job_may_ask_the_registry() -> None:
    (item,) = load(K8S / "examples" / "rollback-job.example.yaml")
    assert INSIDE["promoter"].items() <= item["spec"]["template"]["metadata"]["labels"].items()
