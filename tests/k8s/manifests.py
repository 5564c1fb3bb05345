"""The manifests as data, and the rules that every pod of them keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
# A version tag and a digest, or a digest alone: never a tag that may point at other bytes tomorrow.
IMAGE = re.compile(r"[a-z0-9.-]+(/[a-z0-9._-]+)+(:[0-9][\w.-]*)?@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Document:
    """One Kubernetes object and the file that it stands in."""

    path: Path
    data: dict[str, Any]

    @property
    def id(self) -> str:
        metadata = self.data["metadata"]
        return f"{self.path.relative_to(K8S)}:{self.data['kind']}/{metadata.get('name') or metadata['generateName']}"


def load(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def documents(folder: Path = K8S) -> list[Document]:
    """Every object below a folder; `kustomization.yaml` describes files and is none."""
    files = sorted(path for path in folder.rglob("*.yaml") if path.name != "kustomization.yaml")
    return [Document(path, data) for path in files for data in load(path)]


def pod_spec(data: dict[str, Any]) -> dict[str, Any] | None:
    """The pod that an object makes, if it makes one."""
    if data["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob"):
        job = data["spec"]["jobTemplate"] if data["kind"] == "CronJob" else data
        spec: dict[str, Any] = job["spec"]["template"]["spec"]
        return spec
    return None


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def problems(pod: dict[str, Any]) -> list[str]:
    """What a pod does that the restricted profile of Kubernetes, or a rule of this repository, forbids."""
    return list(_problems(pod))


def _problems(pod: dict[str, Any]) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    if pod.get("automountServiceAccountToken") is not False:
        yield "mounts a token that it does not need"
    mounted = {volume["name"]: volume for volume in pod.get("volumes", ())}
    for volume in mounted.values():
        if "hostPath" in volume:
            yield f"hostPath {volume['name']}"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"emptyDir {volume['name']} without a limit"
    for container in containers(pod):
        name = container["name"]
        security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        if security.get("runAsNonRoot") is not True or not security.get("runAsUser") or not security.get("runAsGroup"):
            yield f"{name} may run as root"
        if security.get("readOnlyRootFilesystem") is not True:
            yield f"{name} writes to its root"
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            yield f"{name} may gain privileges"
        if security.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} has capabilities"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if set(resources.get(kind, {})) < {"cpu", "memory"}:
                yield f"{name} has no {kind}"
        if not IMAGE.fullmatch(container["image"]):
            yield f"{name} runs {container['image']}, which is not named by digest"
        for item in container.get("env", ()):
            if re.search("PASSWORD|SECRET|TOKEN", item["name"]) and "value" in item:
                yield f"{name} carries the value of {item['name']}"


def references(pod: dict[str, Any]) -> set[tuple[str, str, str]]:
    """(kind, name, key) of every setting and secret that a pod reads; key "" for all of it."""
    found = set()
    for container in containers(pod):
        for item in container.get("env", ()):
            source = item.get("valueFrom", {})
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in source:
                    found.add((kind, source[field]["name"], source[field]["key"]))
    for volume in pod.get("volumes", ()):
        if "secret" in volume:
            found.add(("Secret", volume["secret"]["secretName"], ""))
        if "configMap" in volume:
            found.add(("ConfigMap", volume["configMap"]["name"], ""))
    return found
