"""The rules that the objects of an overlay keep together: accounts, rights, network, quotas, secrets, images."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import pod_spec, problems
from tests.k8s.network import NAME_LABEL, selects

Data = dict[str, Any]
KINDS = {
    "ConfigMap",
    "CronJob",
    "Deployment",
    "LimitRange",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
    "StatefulSet",
    "TrainingRuntime",
}
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
# Rights that are, or lead to, all the others.
RISKY_VERBS = {"*", "escalate", "bind", "impersonate", "deletecollection"}
RISKY_RESOURCES = {"*", "pods/exec", "pods/attach", "pods/ephemeralcontainers", "serviceaccounts/token", "nodes/proxy"}
QUOTAS = {
    *(f"{kind}.{amount}" for kind in ("requests", "limits") for amount in ("cpu", "memory")),
    *("pods", "requests.nvidia.com/gpu", "persistentvolumeclaims", "requests.storage"),
    *("services.loadbalancers", "services.nodeports"),
}
# What a second attempt cannot mend: a user's error, invalid data, a gate (`plmsae.errors`).
FINAL = {2, 3, 4}
# `tokens` are counted, and no secret.
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|(password|secret|token(?!s))\w*[=:]\s*[^\s$]|://[^/\s:@]+:[^$/\s@][^@/]*@", re.I
)
# An image of this machine, by the version in its tag.
LOADED = re.compile(r"localhost/[a-z0-9._-]+:[0-9]+\.[0-9]+\.[0-9]+")


def violations(objects: list[Data], *, loaded_images: bool = False) -> list[str]:
    """What an overlay does that a rule forbids.

    Args:
        objects: All of its objects.
        loaded_images: Whether images that were loaded into the node may be named by version.
    """
    return [
        *_kinds(objects),
        *_pods(objects, loaded_images),
        *_jobs(objects),
        *_accounts(objects),
        *_rights(objects),
        *_deny(objects),
        *_ways(objects),
        *_limits(objects),
        *_secrets(objects),
    ]


def of(objects: list[Data], kind: str) -> dict[str, Data]:
    """Name -> object, of one kind."""
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def _kinds(objects: list[Data]) -> Iterator[str]:
    namespaces = of(objects, "Namespace")
    if len(namespaces) != 1:
        yield f"{len(namespaces)} namespaces"
    for item in objects:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] not in KINDS:
            yield f"{name}: a kind without a rule"
        if item["kind"] == "Namespace":
            if not RESTRICTED.items() <= item["metadata"].get("labels", {}).items():
                yield f"{name} admits pods that are not restricted"
        elif item["metadata"].get("namespace") not in namespaces:
            yield f"{name} is in another namespace"


def _pods(objects: list[Data], loaded_images: bool) -> Iterator[str]:
    for item in objects:
        pod = pod_spec(item)
        if pod is None:
            continue
        for problem in problems(pod):
            if not (loaded_images and "named by digest" in problem and LOADED.search(problem)):
                yield f"{item['metadata']['name']}: {problem}"
        if pod.get("serviceAccountName", "default") not in of(objects, "ServiceAccount"):
            yield f"{item['metadata']['name']}: an account that does not exist"


def _jobs(objects: list[Data]) -> Iterator[str]:
    ways_out = [item["spec"] for item in of(objects, "NetworkPolicy").values() if "egress" in item["spec"]]
    for name, item in of(objects, "CronJob").items():
        spec = item["spec"]
        job = spec["jobTemplate"]["spec"]
        pod = job["template"]["spec"]
        if spec.get("suspend") is not True:
            yield f"{name} starts before anybody has named an SAE and its data"
        if spec.get("concurrencyPolicy") != "Forbid":
            yield f"{name} may run twice at once"
        if not spec.get("timeZone"):
            yield f"{name} starts by the clock of some node"
        if not spec.get("startingDeadlineSeconds"):
            yield f"{name} is never too late"
        if not {"successfulJobsHistoryLimit", "failedJobsHistoryLimit"} <= set(spec):
            yield f"{name} does not say how many pods it keeps"
        if not job.get("activeDeadlineSeconds"):
            yield f"{name} may run for ever"
        if pod.get("restartPolicy") != "Never":
            yield f"{name} is started again whatever its exit code"
        codes = {
            code
            for rule in job.get("podFailurePolicy", {}).get("rules", ())
            if rule["action"] == "FailJob"
            and rule["onExitCodes"]["operator"] == "In"
            and rule["onExitCodes"].get("containerName") in {container["name"] for container in pod["containers"]}
            for code in rule["onExitCodes"]["values"]
        }
        if codes != FINAL:
            yield f"{name} repeats what cannot succeed, or not what may"
        labels = job["template"]["metadata"]["labels"]
        if not [way for way in ways_out if way["podSelector"] and selects(way["podSelector"], labels)]:
            yield f"{name} reaches nothing"
        claims = {volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod.get("volumes", ())}
        if not claims - {None} or claims - {None} - set(of(objects, "PersistentVolumeClaim")):
            yield f"{name} has no volume that outlives it"


def _accounts(objects: list[Data]) -> Iterator[str]:
    bound = {subject["name"] for item in of(objects, "RoleBinding").values() for subject in item["subjects"]}
    accounts = of(objects, "ServiceAccount")
    if "default" not in accounts:
        yield "the account `default` keeps its token"
    for name, item in accounts.items():
        if name not in bound and item.get("automountServiceAccountToken") is not False:
            yield f"account {name} has a token and no use for it"


def _rights(objects: list[Data]) -> Iterator[str]:
    roles, accounts = of(objects, "Role"), of(objects, "ServiceAccount")
    for name, item in of(objects, "RoleBinding").items():
        if item["roleRef"]["kind"] != "Role" or item["roleRef"]["name"] not in roles:
            yield f"binding {name} gives a role from elsewhere"
        for subject in item["subjects"]:
            own = subject["kind"] == "ServiceAccount" and subject["name"] in accounts
            if not own or subject["name"] == "default" or subject.get("namespace") != item["metadata"]["namespace"]:
                yield f"binding {name} is for {subject['kind']} {subject['name']}"
    for name, item in roles.items():
        for rule in item["rules"]:
            verbs, resources = set(rule["verbs"]), set(rule["resources"])
            for found in sorted(verbs & RISKY_VERBS | resources & RISKY_RESOURCES | set(rule["apiGroups"]) & {"*"}):
                yield f"role {name} has {found}"
            if resources & {"secrets", "configmaps"} and (not rule.get("resourceNames") or verbs != {"get"}):
                yield f"role {name} reads more than one object by its name"
            if resources & {"roles", "rolebindings", "pods"} and verbs - {"get", "list", "watch"}:
                yield f"role {name} changes {sorted(resources)}"


def _deny(objects: list[Data]) -> Iterator[str]:
    specs = [item["spec"] for item in of(objects, "NetworkPolicy").values()]
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in specs:
        yield "no policy denies all by default"
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet"):
            labels = item["spec"]["template"]["metadata"]["labels"]
            own = [spec for spec in specs if spec["podSelector"] and selects(spec["podSelector"], labels)]
            if not [spec for spec in own if "Ingress" in spec["policyTypes"]]:
                yield f"nobody may reach {item['metadata']['name']}"


def _ways(objects: list[Data]) -> Iterator[str]:
    for name, item in of(objects, "NetworkPolicy").items():
        spec = item["spec"]
        if "egress" in spec and ("-to-" not in name or spec["policyTypes"] != ["Egress"]):
            yield f"policy {name}: a way out has a name of its own, WHO-to-WHAT"
        if "ingress" in spec and spec["policyTypes"] != ["Ingress"]:
            yield f"policy {name}: types and rules differ"
        for rule in [*spec.get("egress", ()), *spec.get("ingress", ())]:
            peers = rule.get("to", rule.get("from"))
            if not peers:
                yield f"policy {name} names nobody"
            for peer in peers or ():
                yield from (f"policy {name}: {problem}" for problem in _peer(peer))
            # Among themselves, the pods of one kind may choose their ports.
            if not rule.get("ports") and [peer.get("podSelector") for peer in peers or ()] != [spec["podSelector"]]:
                yield f"policy {name} names no port"


def _peer(peer: Data) -> Iterator[str]:
    if "ipBlock" in peer:
        network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        if network.prefixlen < (12 if network.is_private else 24):
            yield f"{network} is half the world"
        return
    spaces, pods = peer.get("namespaceSelector"), peer.get("podSelector")
    if spaces is None and not pods:
        yield "every pod of the namespace"
    if spaces is not None and not spaces.get("matchLabels", {}).get(NAME_LABEL):
        yield "a namespace without a name"


def _limits(objects: list[Data]) -> Iterator[str]:
    for kind in ("ResourceQuota", "LimitRange"):
        if len(of(objects, kind)) != 1:
            yield f"no {kind}"
    for item in of(objects, "ResourceQuota").values():
        for name in sorted(QUOTAS - set(item["spec"]["hard"])):
            yield f"no quota for {name}"
        for name in ("services.loadbalancers", "services.nodeports"):
            if item["spec"]["hard"].get(name) != "0":
                yield f"quota for {name}"
    for item in of(objects, "LimitRange").values():
        for limit in item["spec"]["limits"]:
            if limit["type"] == "Container" and not {"default", "defaultRequest", "max"} <= set(limit):
                yield "containers without a limit of their own have none"
    for name, item in of(objects, "Service").items():
        if item["spec"].get("type", "ClusterIP") != "ClusterIP" or item["spec"].get("externalIPs"):
            yield f"service {name} is reached from outside"


def _secrets(objects: list[Data]) -> Iterator[str]:
    for item in objects:
        for where, text in _texts(item):
            if SECRET.search(text):
                yield f"{item['kind']} {item['metadata']['name']} carries a secret at {where}"


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _texts(item, f"{where}.{key}")
