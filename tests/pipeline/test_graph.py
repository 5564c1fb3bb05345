"""The graph is one: the edges and ports that DVC sees are those of the compiled Kubeflow pipeline."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from plmsae.stages.catalog import stages_of
from tests.pipeline.conftest import Finished
from tests.workspace import ROOT, call

EXIT = "report-outcome"
Port = tuple[str, str, str]  # producer, consumer, input port


def compiled(pipeline: str = "train") -> dict[str, Any]:
    specification, _ = yaml.safe_load_all((ROOT / "pipelines" / f"{pipeline}.yaml").read_text(encoding="utf-8"))
    return specification


def tasks(specification: dict[str, Any]) -> dict[str, Any]:
    """Task -> its description, out of the exit handler's sub-graph."""
    (name,) = [name for name in specification["components"] if name.startswith("comp-exit-handler")]
    found: dict[str, Any] = specification["components"][name]["dag"]["tasks"]
    return found


def kfp_ports(specification: dict[str, Any]) -> set[Port]:
    return {
        (source["taskOutputArtifact"]["producerTask"], task, port)
        for task, description in tasks(specification).items()
        for port, source in description.get("inputs", {}).get("artifacts", {}).items()
    }


def kfp_checksums(specification: dict[str, Any]) -> set[Port]:
    """Where the parameter `<port>_sha256` of each task comes from, as the port it belongs to."""
    return {
        (source["taskOutputParameter"]["producerTask"], task, name.removesuffix("_sha256"))
        for task, description in tasks(specification).items()
        for name, source in description.get("inputs", {}).get("parameters", {}).items()
        if "taskOutputParameter" in source
    }


def flattened(specification: dict[str, Any]) -> tuple[set[Port], set[Port]]:
    """The artifacts, and the values, that tasks get from other tasks, through the graphs in which they stand.

    The item of a loop counts as what the loop goes over.
    """
    artifacts: set[Port] = set()
    values: set[Port] = set()

    def walk(dag: dict[str, Any], given: dict[str, str | None]) -> None:
        for task, description in dag["tasks"].items():
            found: dict[str, str | None] = {}
            for kind in ("artifacts", "parameters"):
                for name, source in description.get("inputs", {}).get(kind, {}).items():
                    produced = source.get("taskOutputArtifact") or source.get("taskOutputParameter") or {}
                    outer = source.get("componentInputArtifact") or source.get("componentInputParameter")
                    found[name] = produced.get("producerTask") or given.get(outer)
            if loop := description.get("parameterIterator"):
                found[loop["itemInput"]] = found[loop["items"]["inputParameter"]]
            component = specification["components"][description["componentRef"]["name"]]
            if "dag" in component:
                walk(component["dag"], found)
                continue
            inputs = description.get("inputs", {})
            artifacts.update((found[n], task, n) for n in inputs.get("artifacts", {}) if found[n])  # type: ignore[misc]
            values.update((found[n], task, n) for n in inputs.get("parameters", {}) if found[n])  # type: ignore[misc]

    walk(specification["root"]["dag"], {})
    return artifacts, values


def dvc_edges(root: Any, *target: str) -> set[tuple[str, str]]:
    """(producer, consumer) from DVC's own picture of the graph, or of what a target needs."""
    dot = call(root, "dvc", "dag", "--dot", *target).stdout
    found = re.findall(r'"([^"]+)"\s*->\s*"([^"]+)"', dot)
    assert found, dot
    return {(_task(a), _task(b)) for a, b in found if not a.endswith(".dvc")}


def _task(dvc_stage: str) -> str:
    return dvc_stage.rpartition("dvc.yaml:")[2].replace("@", "-").replace("_", "-")


def ordered(specification: dict[str, Any]) -> set[tuple[str, str]]:
    """(producer, consumer) from the order that Kubeflow is told."""
    return {
        (producer, task)
        for task, description in tasks(specification).items()
        for producer in description.get("dependentTasks", [])
    }


@pytest.fixture(scope="module")
def of_dvc(finished: Finished) -> set[tuple[str, str]]:
    return dvc_edges(finished.root)


def test_edges_are_those_of_dvc(of_dvc: set[tuple[str, str]]) -> None:
    edges = {(producer, consumer) for producer, consumer, _ in kfp_ports(compiled())}
    assert edges == of_dvc
    assert ordered(compiled()) == edges


def test_ports_are_those_of_the_catalogue() -> None:
    declared = {
        (_task(port.source), _task(stage.id), port.name)
        for stage in stages_of("train").values()
        for port in stage.inputs
    }
    assert kfp_ports(compiled()) == declared
    assert kfp_checksums(compiled()) == declared, "every port goes with the checksum of its contents"


def test_tasks_are_the_stages() -> None:
    assert set(tasks(compiled())) == {_task(stage_id) for stage_id in stages_of("train")}
    assert EXIT in compiled()["root"]["dag"]["tasks"]


@pytest.mark.parametrize("number", range(3))
def test_a_deleted_edge_is_noticed(of_dvc: set[tuple[str, str]], number: int) -> None:
    """Delete one edge by hand, as a careless edit of pipelines/train.py would."""
    specification = copy.deepcopy(compiled())
    producer, consumer, port = sorted(kfp_ports(specification))[number * 5]
    del tasks(specification)[consumer]["inputs"]["artifacts"][port]
    assert kfp_ports(specification) != kfp_ports(compiled())
    others = {(a, b) for a, b, _ in kfp_ports(specification)}
    assert others == of_dvc - {(producer, consumer)}
