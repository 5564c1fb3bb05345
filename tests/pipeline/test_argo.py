"""The manifests of Argo without Argo: the command of every task, in the order of the graph, in one folder."""

from __future__ import annotations

import hashlib
import os
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from plmsae.cluster.argo import PARAMS_FILE, PARAMS_FOLDER, WORKSPACE, argo_manifests
from plmsae.params import ParamsFile
from plmsae.stages.components import EXAMPLE_IMAGE
from tests.pipeline.conftest import Finished
from tests.workspace import call, output_bytes


def run_by_hand(manifests: list[dict[str, Any]], workspace: Path, config: Path, **arguments: str) -> None:
    """What Argo does with a graph, one task at a time; paths of mounts become paths of this machine."""
    params, template = manifests
    (config / PARAMS_FILE).write_text(params["data"][PARAMS_FILE], encoding="utf-8")
    spec = template["spec"]
    values = {item["name"]: item.get("value") for item in spec["arguments"]["parameters"]} | arguments
    pods = {item["name"]: item for item in spec["templates"]}
    graph = {item["name"]: item.get("dependencies", []) for item in pods[spec["entrypoint"]]["dag"]["tasks"]}
    for name in TopologicalSorter(graph).static_order():
        container = pods[name]["container"]
        assert container["workingDir"] == WORKSPACE
        command = [*container["command"], *container["args"]]
        for key, value in values.items():
            command = [item.replace("{{workflow.parameters." + key + "}}", str(value)) for item in command]
        call(workspace, *(item.replace(PARAMS_FOLDER, str(config)) for item in command))


@pytest.mark.long
def test_the_commands_in_the_order_of_the_graph_give_the_bytes_of_dvc_repro(finished: Finished, tmp_path: Path) -> None:
    root = finished.copy_to(tmp_path / "work")
    manifests = argo_manifests("train", ParamsFile(root / "params.yaml"), image=EXAMPLE_IMAGE)
    config = tmp_path / "etc"
    config.mkdir()
    # As in a pod: an empty volume, and nothing of the checkout but the file in the bucket.
    before = output_bytes(root)
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints", "params.yaml", "dvc.yaml")
    source = root / "data" / "swissprot.tsv.gz"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    run_by_hand(manifests, root, config, source=os.path.relpath(source, root), source_sha256=digest)
    after = output_bytes(root)
    assert after.keys() == before.keys()
    own = ("register/", "promote/")  # what they write says which version it is, the second here
    assert [name for name in before if not name.startswith(own) and after[name] != before[name]] == []
