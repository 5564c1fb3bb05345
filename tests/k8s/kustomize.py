"""Puts the manifests together as `kubectl kustomize` does, for machines without kubectl.

Knows the part of kustomize that k8s/ uses and refuses everything else. Where kubectl is installed,
test_overlays.py compares the two.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.manifests import load

Objects = list[dict[str, Any]]
FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "labels", "images", "patches"}
FILE = "kustomization.yaml"
CLUSTER_KINDS = {"Namespace"}


class RefusedError(Exception):
    """A kustomization that this reader does not know, or that kustomize refuses."""


def render(folder: Path) -> Objects:
    """The objects of a kustomization, in no particular order."""
    return _apply(folder, [], "Kustomization")


def _apply(folder: Path, objects: Objects, kind: str) -> Objects:
    (data,) = load(folder / FILE)
    if data["kind"] != kind or set(data) - FIELDS:
        raise RefusedError(f"{folder}: kind {data['kind']}, fields {sorted(set(data) - FIELDS)}")
    for name in data.get("resources", ()):
        path = (folder / name).resolve()
        objects += render(path) if path.is_dir() else load(path)
    for name in data.get("components", ()):
        objects = _apply((folder / name).resolve(), objects, "Component")
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    if len(names) != len(set(names)):
        raise RefusedError(f"{folder}: an object is there twice")
    for patch in data.get("patches", ()):
        objects = _patched(objects, patch)
    if namespace := data.get("namespace"):
        _name_the_namespace(objects, namespace)
    for entry in data.get("labels", ()):
        if set(entry) != {"pairs"}:
            raise RefusedError(f"{folder}: labels with {sorted(entry)}")
        for item in objects:
            item["metadata"].setdefault("labels", {}).update(entry["pairs"])
    for image in data.get("images", ()):
        for item in objects:
            _name_the_image(item, image)
    return objects


def _patched(objects: Objects, patch: dict[str, Any]) -> Objects:
    if set(patch) != {"target", "patch"} or set(patch["target"]) != {"kind", "name"}:
        raise RefusedError(f"patch with {sorted(patch)}")
    change = yaml.safe_load(patch["patch"])
    hit = [item for item in objects if _is_target(item, patch["target"])]
    if not hit:
        raise RefusedError(f"a patch of {patch['target']} meets no object")
    if isinstance(change, list):
        for item in hit:
            for operation in change:
                _operate(item, operation)
        return objects
    if change.get("$patch") == "delete":
        return [item for item in objects if not _is_target(item, patch["target"])]
    for item in hit:
        _merge(item, change)
    return objects


def _is_target(item: dict[str, Any], target: dict[str, str]) -> bool:
    pairs = ((target["kind"], item["kind"]), (target["name"], item["metadata"]["name"]))
    return all(re.fullmatch(pattern, text) for pattern, text in pairs)


def _merge(item: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, list) or key.startswith("$"):
            raise RefusedError(f"how '{key}' is merged depends on its schema: write it as a JSON patch")
        if isinstance(value, dict) and isinstance(item.get(key), dict):
            _merge(item[key], value)
        else:
            item[key] = value


def _operate(item: Any, operation: dict[str, Any]) -> None:
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in parents:
        item = item[int(part)] if isinstance(item, list) else item[part]
    key = int(last) if isinstance(item, list) and last != "-" else last
    match operation["op"]:
        case "test":
            if item[key] != operation["value"]:
                raise RefusedError(f"{operation['path']} is {item[key]!r}, not {operation['value']!r}")
        case "replace":
            if isinstance(item, dict) and key not in item:
                raise RefusedError(f"{operation['path']} is not there")
            item[key] = copy.deepcopy(operation["value"])
        case "add" if isinstance(item, list):
            item.insert(len(item) if key == "-" else int(key), copy.deepcopy(operation["value"]))
        case "add":
            item[key] = copy.deepcopy(operation["value"])
        case "remove":
            del item[key]
        case other:
            raise RefusedError(f"operation '{other}'")


def _name_the_namespace(objects: Objects, namespace: str) -> None:
    accounts = {item["metadata"]["name"] for item in objects if item["kind"] == "ServiceAccount"}
    for item in objects:
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = namespace
        elif item["kind"] not in CLUSTER_KINDS:
            item["metadata"]["namespace"] = namespace
        for subject in item.get("subjects", ()):
            if subject["kind"] == "ServiceAccount" and subject["name"] in accounts:
                subject["namespace"] = namespace


def _name_the_image(value: Any, image: dict[str, str]) -> None:
    if isinstance(value, list):
        for item in value:
            _name_the_image(item, image)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in ("containers", "initContainers"):
            for container in item:
                name = re.sub(r"(:[^:/@]+)?(@.+)?$", "", container["image"])
                if name == image["name"]:
                    tag = f":{image['newTag']}" if "newTag" in image else ""
                    digest = f"@{image['digest']}" if "digest" in image else ""
                    rest = container["image"].removeprefix(name)
                    container["image"] = image.get("newName", name) + (tag + digest or rest)
        else:
            _name_the_image(item, image)
