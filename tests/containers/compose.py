"""Just enough of Docker Compose to run a service of compose.yaml with podman: variables, and one service's options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::\?(?P<message>[^}]*))?\}|\$\$")


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML silently keeps the last."""


def _mapping(loader: _NoDuplicates, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    assert len(keys) == len(set(keys)), f"a key stands twice in line {node.start_mark.line + 1}"
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_NoDuplicates.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(path: Path) -> dict[str, Any]:
    """The file as it stands, merge keys resolved, variables not."""
    found: dict[str, Any] = _NoDuplicates(path.read_text(encoding="utf-8")).get_single_data()
    return found


def interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with its variables replaced.

    Raises:
        LookupError: A variable that must be set is not, or is empty; the message is the file's own.
    """

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        found = variables.get(match["name"], "")
        if not found and match["message"] is not None:
            raise LookupError(match["message"])
        return found

    if isinstance(value, str):
        return _VARIABLE.sub(replaced, value)
    if isinstance(value, list):
        return [interpolate(item, variables) for item in value]
    if isinstance(value, dict):
        return {key: interpolate(item, variables) for key, item in value.items()}
    return value


def run_options(service: Mapping[str, Any], volumes: Mapping[str, str]) -> list[str]:
    """Options of `podman run` for a service, without its network and ports.

    Args:
        service: An interpolated service.
        volumes: Volume of the file -> the volume to use in its place.
    """
    options = ["--read-only"] if service.get("read_only") else []
    for name in service.get("cap_drop", []):
        options += ["--cap-drop", name]
    for name in service.get("security_opt", []):
        options += ["--security-opt", name.replace(":true", "")]
    for mount in service.get("tmpfs", []):
        options += ["--tmpfs", mount]
    for name, value in service.get("environment", {}).items():
        options += ["--env", f"{name}={value}"]
    for mount in service.get("volumes", []):
        name, _, target = mount.partition(":")
        options += ["--volume", f"{volumes[name]}:{target}"]
    return options
