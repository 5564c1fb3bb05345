"""The manifests of Argo without Argo: the command of every task, in the order of the graph, in one folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from plmsae.cluster.argo import argo_manifests
from plmsae.cluster.argo_tasks import PARAMS_FILE, PARAMS_FOLDER, WORKSPACE
from plmsae.params import ParamsFile
from plmsae.registry.connection import connect, experiment_id
from plmsae.stages.components import EXAMPLE_IMAGE
from tests.pipeline.conftest import Finished
from tests.workspace import call, output_bytes


def run_by_hand(manifests: list[dict[str, Any]], workspace: Path, config: Path, **arguments: str) -> list[str]:
    """What Argo does with a graph, one task at a time; paths of mounts become paths of this machine.

    Returns:
        The tasks that were run; the others were left out by their condition.
    """
    params, template = manifests
    config.mkdir()
    done = []
    (config / PARAMS_FILE).write_text(params["data"][PARAMS_FILE], encoding="utf-8")
    spec = template["spec"]
    values = {item["name"]: item.get("value") for item in spec["arguments"]["parameters"]} | arguments
    known = {f"workflow.parameters.{name}": str(value) for name, value in values.items()}
    pods = {item["name"]: item for item in spec["templates"]}
    graph = {item["name"]: item for item in pods[spec["entrypoint"]]["dag"]["tasks"]}
    for name in TopologicalSorter({key: item.get("dependencies", []) for key, item in graph.items()}).static_order():
        pod, given = pods[name], graph[name].get("arguments", {}).get("parameters", ())
        own = {f"inputs.parameters.{item['name']}": filled(item["value"], known) for item in given}
        if not holds(filled(graph[name].get("when", "a == a"), known)):
            continue
        done.append(name)
        assert pod["container"]["workingDir"] == WORKSPACE
        command = [*pod["container"]["command"], *pod["container"]["args"]]
        call(workspace, *(filled(item, known | own).replace(PARAMS_FOLDER, str(config)) for item in command))
        for item in pod.get("outputs", {}).get("parameters", ()):
            path = item["valueFrom"]["path"].replace(WORKSPACE, str(workspace))
            known[f"tasks.{name}.outputs.parameters.{item['name']}"] = Path(path).read_text(encoding="utf-8")
    return done


def holds(condition: str) -> bool:
    left, operator, right = condition.split()
    return {"==": left == right, "!=": left != right}[operator]


def filled(text: str, known: dict[str, str]) -> str:
    return re.sub(r"{{([\w.-]+)}}", lambda found: known[found[1]], text)


def emptied(finished: Finished, root: Path) -> tuple[Path, dict[str, str]]:
    """A copy of the finished run as a pod finds it: an empty volume, with the file in the bucket and the registry."""
    finished.copy_to(root)
    source = root / "data" / "swissprot.tsv.gz"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return root, {"source": os.path.relpath(source, root), "source_sha256": digest}


@pytest.mark.long
def test_the_commands_in_the_order_of_the_graph_give_the_bytes_of_dvc_repro(finished: Finished, tmp_path: Path) -> None:
    root, arguments = emptied(finished, tmp_path / "work")
    manifests = argo_manifests("train", ParamsFile(root / "params.yaml"), image=EXAMPLE_IMAGE)
    before = output_bytes(root)
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints", "params.yaml", "dvc.yaml")
    run_by_hand(manifests, root, tmp_path / "etc", **arguments)
    after = output_bytes(root)
    assert after.keys() == before.keys()
    own = ("register/", "promote/")  # what they write says which version it is, the second here
    assert [name for name in before if not name.startswith(own) and after[name] != before[name]] == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("pipeline", "same"),
    [
        ("steer", {"steer"}),
        ("evaluate", {f"evaluate/{name}" for name in ("fidelity", "concepts", "baselines", "amortisation")}),
    ],
)
def test_a_registered_sae_gives_the_numbers_of_its_training(
    pipeline: str, same: set[str], finished: Finished, tmp_path: Path
) -> None:
    root, arguments = emptied(finished, tmp_path / "work")
    # A file of another layer: the SAE's is taken.
    file = ParamsFile(root / "params.yaml", ["extract_activations.layer=1"])
    before = output_bytes(root)
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints", "params.yaml", "dvc.yaml")
    manifests = argo_manifests(pipeline, file, image=EXAMPLE_IMAGE)
    run_by_hand(manifests, root, tmp_path / "etc", **arguments)
    after = output_bytes(root)
    of_stages = [name for name in before if name.rpartition("/")[0] in same]
    assert {name.rpartition("/")[0] for name in of_stages} == same
    assert {name for name in of_stages if after[name] != before[name]} == {f"{name}/manifest.json" for name in same}
    # Manifests name the SAE as it was pulled, and the revision of the PLM; what they describe is the same to the byte.
    common = [name for name in before if name.startswith(("ingest/", "extract_activations/")) and name in after]
    assert any(name.startswith("extract_activations/") for name in common) == (pipeline == "evaluate")
    assert {name for name in common if after[name] != before[name]} <= {"extract_activations/manifest.json"}
    page = after["report/report.html"].decode()
    with connect(root) as client:
        (run,) = client.search_runs([experiment_id(client, root)], "tags.stage = 'report'")
        kept = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path)))
    assert kept.read_text(encoding="utf-8") == page, "the volume does not outlive the run"
    assert '<section id="steering">' in page if pipeline == "steer" else '<section id="absorption">' in page


@pytest.mark.long
def test_only_what_has_changed_is_evaluated_again(finished: Finished, tmp_path: Path) -> None:
    root, arguments = emptied(finished, tmp_path / "work")
    del arguments["source_sha256"]
    same = ParamsFile(root / "params.yaml")
    other = ParamsFile(root / "params.yaml", ["evaluate.concepts.num_resamples=120", "reevaluate.min_pairs=5"])
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints", "params.yaml", "dvc.yaml")
    for number, (file, expected) in enumerate(
        [(same, ["changes"]), (other, ["changes", "reevaluate", "verdict"]), (other, ["changes"])]
    ):
        manifests = argo_manifests("reevaluate", file, image=EXAMPLE_IMAGE)
        assert run_by_hand(manifests, root, tmp_path / f"etc{number}", **arguments) == expected
    assert json.loads((root / "outputs" / "reevaluate" / "reevaluation.json").read_text())["evaluated"] == ["concepts"]
