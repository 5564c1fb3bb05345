"""The Kubeflow pipeline `sweep`: a sweep for every pair of a layer and an architecture, one page with all of them."""

from __future__ import annotations

import csv
import json
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plmsae.cluster.sections import pipeline_arguments
from plmsae.params import ParamsFile
from plmsae.stages.catalog import stages
from plmsae.stages.components import task_name
from tests.pipeline.conftest import Finished
from tests.pipeline.test_graph import compiled, flattened
from tests.pipeline.test_kubeflow import files, run_pipeline
from tests.workspace import call

EVALUATIONS = ("evaluate@fidelity", "evaluate@concepts", "evaluate@baselines", "evaluate@amortisation")
OF_A_PAIR = ("sweep", *EVALUATIONS, "register")
STAGES = ("ingest", "validate", "extract_activations", "sweep_pairs", *OF_A_PAIR, "sweep_report")
# What a run is asked for: those around the pairs, and those of a pair.
ASKED = (*STAGES[:4], *OF_A_PAIR)


def graph(specification: dict[str, Any], start: str) -> dict[str, Any]:
    """The tasks of the sub-graph whose component's name begins so."""
    (name,) = [name for name in specification["components"] if name.startswith(start)]
    found: dict[str, Any] = specification["components"][name]["dag"]["tasks"]
    return found


def test_the_loop_stands_alone_in_a_graph_of_its_own() -> None:
    """What KFP's local runner and the backend both run (docs/adr/0029)."""
    specification = compiled("sweep")
    (loop,) = graph(specification, "comp-plmsae-pairs").values()
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--pairs"}
    assert loop["iteratorPolicy"] == {"parallelismLimit": 16}
    sources = [*loop["inputs"]["parameters"].values(), *loop["inputs"]["artifacts"].values()]
    assert all("taskOutput" not in kind for source in sources for kind in source)
    assert set(graph(specification, "comp-for-loop")) == {task_name(stages()[name]) for name in OF_A_PAIR}


def test_every_port_of_every_pair_is_connected_with_its_checksum() -> None:
    specification = compiled("sweep")
    producers = {port.source: task_name(stages()[port.source]) for name in STAGES for port in stages()[name].inputs}
    producers["train_sae"] = "sweep"
    declared = {
        (producers[port.source], task_name(stages()[name]), port.name)
        for name in STAGES
        for port in stages()[name].inputs
    }
    artifacts, values = flattened(specification)
    assert artifacts == declared
    assert {(producer, task, name.removesuffix("_sha256")) for producer, task, name in values} - declared == {
        ("sweep-pairs", "extract-activations", "layer"),
        ("sweep-pairs", "extract-activations", "params"),
        ("sweep-pairs", "sweep", "grid"),
        ("sweep-pairs", "sweep", "params"),
    }
    assert declared <= {(producer, task, name.removesuffix("_sha256")) for producer, task, name in values}


def test_the_page_waits_for_the_pairs_alone_whatever_becomes_of_them() -> None:
    """The backend makes it an exit hook of each thing that it waits for."""
    page = graph(compiled("sweep"), "comp-exit-handler")["sweep-report"]
    assert page["dependentTasks"] == ["plmsae-pairs"]
    assert page["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    for name, source in page["inputs"]["parameters"].items():
        assert "taskOutputParameter" not in source, name
    assert not page["inputs"].get("artifacts")
    assert not page["cachingOptions"].get("enableCache")


@dataclass(frozen=True)
class Run:
    """A run of the pipeline: what its process printed, and where its outputs lie."""

    process: subprocess.CompletedProcess[str]
    folder: Path

    @property
    def started(self) -> Counter[str]:
        """Stage -> how often it was started; what came from the cache was not."""
        lines = (line.split() for line in self.process.stdout.splitlines() if line.strip().endswith(" started"))
        return Counter(words[0] for words in lines)

    def outputs(self, task: str) -> list[Path]:
        """Output folders of a task, pair by pair."""
        return sorted(self.folder.rglob(f"{task}/output"))

    def rows(self) -> list[dict[str, str]]:
        """The table of the page."""
        (page,) = self.outputs("sweep-report")
        with (page / "pairs.csv").open(newline="") as handle:
            return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def workspace(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with its registry, and without its outputs."""
    root = finished.copy_to(tmp_path_factory.mktemp("pairs") / "work")
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints")
    return root


PAIRS = ("sweep_pairs.layers=[1, 2]", "sweep_pairs.architectures=[topk, relu]", "sweep.train_sae.tokens=20000")
GRID = "sweep.grid={k: [8, 16], penalty: [0.05]}"


def run(root: Path, *overrides: str, check: bool = True) -> Run:
    """The pipeline with the parameters of the working folder, as `plmsae submit` gives them."""
    before = set((root / "kfp").glob("plmsae-sweep-*"))
    arguments = pipeline_arguments(ParamsFile(root / "params.yaml", overrides), ASKED)
    process = run_pipeline(root, arguments, pipeline="sweep", caching=True, check=check, timeout=1800)
    (folder,) = set((root / "kfp").glob("plmsae-sweep-*")) - before
    return Run(process, folder)


@pytest.fixture(scope="module")
def first(workspace: Path) -> Run:
    return run(workspace, *PAIRS, GRID)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_pair_is_swept_evaluated_and_registered_under_its_own_name(first: Run, workspace: Path) -> None:
    once = ("ingest", "validate", "extract_activations", "sweep_pairs", "sweep_report")
    assert first.started == Counter({**dict.fromkeys(once, 1), **dict.fromkeys(OF_A_PAIR, 4)})
    (activations,) = first.outputs("extract-activations")
    assert {path.name for path in activations.iterdir() if path.is_dir()} >= {"layer1.residual", "layer2.residual"}
    rows = first.rows()
    assert [(row["layer"], row["architecture"]) for row in rows] == [
        ("1", "topk"), ("1", "relu"), ("2", "topk"), ("2", "relu")
    ]  # fmt: skip
    registered = {}
    for folder in first.outputs("register"):
        found = json.loads((folder / "registration.json").read_text())
        registered[f"models:/{found['name']}/{found['version']}"] = folder
    assert {row["model"] for row in rows} == set(registered)
    assert {row["model"].rpartition("/")[0] for row in rows} == {
        f"models:/plmsae.esm_small.layer{layer}.{architecture}" for layer in (1, 2) for architecture in ("topk", "relu")
    }
    for row in rows:
        pair = registered[row["model"]].parents[1]
        with (pair / "sweep" / "output" / "members.csv").open(newline="") as handle:
            members = list(csv.DictReader(handle))
        assert [member["member"] for member in members] == (
            ["k8", "k16"] if row["architecture"] == "topk" else ["relu-penalty0.05"]
        )
        assert [row["member"]] == [member["member"] for member in members if member["chosen"] == "1"]
        fidelity = json.loads((pair / "evaluate-fidelity" / "output" / "metrics.json").read_text())
        concepts = json.loads((pair / "evaluate-concepts" / "output" / "metrics.json").read_text())
        assert float(row["fidelity.fvu"]) == pytest.approx(fidelity["fvu"], rel=1e-5)
        assert float(row["concepts.mean_f1_sae_low"]) == pytest.approx(concepts["mean_f1_sae_low"], rel=1e-5)
    page = (first.outputs("sweep-report")[0] / "report.html").read_text()
    assert all(row["model"] in page for row in rows)
    assert "data:image/png" in page


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_members_of_a_pair_are_those_of_the_command(first: Run, workspace: Path) -> None:
    (sequences,), (activations,) = first.outputs("ingest"), first.outputs("extract-activations")
    swept = {}
    for folder in first.outputs("sweep"):
        config = json.loads((folder / "sae" / "config.json").read_text())
        swept[config["layer"], config["architecture"]] = folder
    for (layer, architecture), grid in {
        (1, "relu"): "{architecture: [relu], penalty: [0.05]}",
        (2, "topk"): "{k: [8, 16]}",
    }.items():
        alone = workspace / "alone" / architecture
        command = ["plmsae", "run", "sweep", "--set", f"sweep.grid={grid}", "--set", f"sweep.train_sae.layer={layer}"]
        command += ["--set", PAIRS[-1]]
        command += ["--input", f"sequences={sequences}", "--input", f"activations={activations}"]
        call(workspace, *command, "--output", str(alone))
        assert files(alone) == files(swept[layer, architecture])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_second_run_computes_no_pair_again_and_a_new_pair_alone(first: Run, workspace: Path) -> None:
    again = run(workspace, *PAIRS, GRID)
    assert again.started == Counter(register=4, sweep_report=1)
    assert again.rows() == first.rows(), "the same versions"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_pair_that_fails_leaves_the_others_and_the_page(first: Run, workspace: Path) -> None:
    """The loss of the relu pairs is infinite; their names hold candidates of the first run, another sweep's."""
    failed = run(workspace, *PAIRS, "sweep.grid={k: [8, 16], penalty: [1.0e+38]}", check=False)
    assert failed.process.returncode != 0
    assert failed.started["register"] == 2
    assert failed.started["sweep"] >= 1
    assert not failed.started["evaluate@fidelity"], "the topk pairs come from the cache"
    rows = {(row["layer"], row["architecture"]): row["model"] for row in failed.rows()}
    before = {(row["layer"], row["architecture"]): row["model"] for row in first.rows()}
    assert {pair for pair, model in rows.items() if not model} == {("1", "relu"), ("2", "relu")}
    assert {pair: model for pair, model in rows.items() if model} == {
        pair: model for pair, model in before.items() if pair[1] == "topk"
    }
    assert "not registered" in (failed.outputs("sweep-report")[0] / "report.html").read_text()
    assert '"state": "FAILED"' in failed.process.stdout
