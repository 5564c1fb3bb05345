"""A lineage for people: a tree of lines. What was not recorded says so."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plmsae.registry.tracking import flatten

UNKNOWN = "not recorded"
_WIDTH = 100


@dataclass
class _Node:
    text: str
    children: list[_Node] = field(default_factory=list)

    def add(self, label: str, value: Any) -> _Node:
        node = _Node(f"{label}: {shown(value)}")
        self.children.append(node)
        return node

    def branch(self, text: str) -> _Node:
        self.children.append(node := _Node(text))
        return node


def shown(value: Any) -> str:
    """A value for people; what was not recorded says so."""
    if value is None:
        return UNKNOWN
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def tree(found: Mapping[str, Any]) -> list[str]:
    """The lines of a lineage as `plmsae.registry.lineage.lineage` returns it."""
    aliases = f" ({', '.join(found['aliases'])})" if found["aliases"] else ""
    top = _Node(f"{found['uri']}{aliases}")
    top.add("registered", found["registered_at"])
    _code(top.branch("code"), found["code"])
    runs = top.branch("runs")
    runs.add("Kubeflow run", found["runs"]["kfp_run_id"])
    runs.add("its page", found["runs"]["kfp_run_url"])
    runs.add("MLflow run", found["runs"]["mlflow_run_id"])
    data = top.branch("data")
    for key in ("source", "release", "licence", "sha256"):
        data.add(key, found["data"][key])
    _table(data, "raw files", found["data"]["raw_files"])
    plm = top.branch("protein language model")
    for key in ("name", "revision", "layer", "hook"):
        plm.add(key, found["plm"][key])
    _table(top, "DVC", found["dvc"])
    stages = top.branch("stages")
    for port, stage in found["stages"].items():
        _stage(stages.branch(f"{port} ({stage['stage'] or 'stage ' + UNKNOWN})"), stage)
    sums = top.branch("sha256")
    for key, value in found["sha256"].items():
        sums.add(key, value)
    history = top.branch("history" if found["history"] else f"history: {UNKNOWN}")
    for record in found["history"]:
        _event(history, record)
    return [top.text, *_lines(top.children, "")]


def _code(node: _Node, code: Mapping[str, Any]) -> None:
    dirty = {True: " (with uncommitted changes)", False: " (clean)", None: ""}[code["git_dirty"]]
    node.add("git commit", code["git_commit"] and code["git_commit"] + dirty)
    node.add("image", code["image"])
    if code["image"] and not code["image_digest"]:
        node.add("digest of the image", None)
    node.add("plmsae", code["plmsae"])


def _stage(node: _Node, stage: Mapping[str, Any]) -> None:
    node.add("manifest", stage["manifest_sha256"])
    node.add("code", stage["code_sha256"])
    if stage["inputs"] is None:
        node.add("made from", None)
    elif stage["inputs"]:
        node.add("made from", ", ".join(f"{port} {sha256[:12]}" for port, sha256 in stage["inputs"].items()))
    for name, sha256 in (stage["source_files"] or {}).items():
        node.add(f"raw file {name}", sha256)
    if stage["params"] is None:
        node.add("parameters", None)
        return
    given = {name: value for name, value in flatten(stage["params"]).items() if value is not None}
    lines = [""]
    for item in (f"{name}={shown(value)}" for name, value in given.items()):
        if lines[-1] and len(lines[-1]) + len(item) > _WIDTH:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{item}"
    node.branch("parameters").children += [_Node(line or "none") for line in lines]


def _event(node: _Node, record: Mapping[str, Any]) -> None:
    if record["kind"] == "rollback":
        what = f"rolled back from version {record.get('from_version')} to {record.get('to_version')}"
    elif record.get("promoted"):
        before = record.get("from_version")
        what = f"version {record.get('version')} promoted" + (f" instead of version {before}" if before else "")
    else:
        what = "refused"
    unfinished = "" if record.get("done", True) else " (cut off)"
    event = node.branch(
        f"{record.get('at')} {what}{unfinished}{': ' if record.get('reason') else ''}{record['reason']}"
    )
    for number in record.get("numbers", ()):
        metric, rule, value, limit, passed = number
        measured = UNKNOWN if value is None else f"{value:.6g}"
        event.branch(f"{metric} = {measured}, {rule} {limit:.6g}: {'passed' if passed else 'failed'}")


def _table(node: _Node, title: str, values: Mapping[str, str] | None) -> None:
    if not values:
        node.add(title, None)
        return
    branch = node.branch(title)
    for key, value in values.items():
        branch.add(key, value)


def _lines(nodes: Sequence[_Node], indent: str) -> list[str]:
    found = []
    for place, node in enumerate(nodes):
        last = place == len(nodes) - 1
        found.append(f"{indent}{'└─ ' if last else '├─ '}{node.text}")
        found += _lines(node.children, indent + ("   " if last else "│  "))
    return found
