"""The other pipelines in containers, on the registry that the training pipeline filled in containers."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers.marks import CONTAINERS
from tests.containers.pipeline_run import ContainerRun, run_pipeline
from tests.pipeline.test_kubeflow import files
from tests.pipeline.test_registered import EVALUATIONS, STAGES
from tests.pipeline.test_sweep_pairs import ASKED
from tests.workspace import FIXTURE, environment

pytestmark = CONTAINERS
MODEL = "plmsae.esm_small.layer2.topk"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("containers")


def asked(pipeline: str) -> list[str]:
    """The stages whose sections a run of a pipeline that starts from a registered SAE is asked for."""
    return [name for name in STAGES[pipeline] if name not in ("pull", "extract_activations")]


def assert_same_numbers(here: Path, there: Path) -> None:
    """Every file but the manifest, which names where the SAE was read from."""
    ours, theirs = files(here), files(there)
    assert {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} == {"manifest.json"}


def test_evaluate_gives_the_numbers_of_the_training_pipeline(
    finished: ContainerRun, image: str, workspace: Path, folder: Path
) -> None:
    model = f"models:/{MODEL}/1"
    run = run_pipeline(image, folder, workspace, finished.registry, "evaluate", asked("evaluate"), model=model)
    for name in ("fidelity", "concepts", "baselines", "amortisation"):
        assert_same_numbers(run.output(f"evaluate-{name}"), finished.output(f"evaluate-{name}"))
    page = (run.output("report").parent / "report").read_text(encoding="utf-8")
    assert all(f'<section id="{name}">' in page for name in EVALUATIONS)


def test_steer_holds_a_latent_as_in_the_training_pipeline(
    finished: ContainerRun, image: str, workspace: Path, folder: Path
) -> None:
    model = f"models:/{MODEL}/1"
    run = run_pipeline(image, folder, workspace, finished.registry, "steer", asked("steer"), model=model)
    assert_same_numbers(run.output("steer"), finished.output("steer"))
    assert '<section id="steering">' in (run.output("report").parent / "report").read_text(encoding="utf-8")


def test_reevaluate_measures_nothing_that_is_fresh_and_what_a_new_release_made_stale(
    finished: ContainerRun, image: str, workspace: Path, folder: Path
) -> None:
    settings, model = ["reevaluate.min_pairs=5", "reevaluate.num_resamples=200"], f"models:/{MODEL}/1"
    common = (image, folder, workspace, finished.registry, "reevaluate", ["reevaluate"], settings)
    unchanged = run_pipeline(*common, model=model)
    assert len(unchanged.outputs("changes")) == 1
    assert not unchanged.outputs("reevaluate")
    lines = gzip.decompress(FIXTURE.read_bytes()).splitlines(keepends=True)
    newer = folder / "data" / "new.tsv.gz"
    newer.write_bytes(gzip.compress(b"".join(lines[:-5]), mtime=0))
    run = run_pipeline(*common, model=model, source="data/new.tsv.gz")
    assert {"history.csv", "reevaluation.json"} <= {path.name for path in run.output("reevaluate").iterdir()}
    told = json.loads((run.output("reevaluate").parent / "executor_output.json").read_text())["parameterValues"]
    assert told["verdict"] == "fine"
    assert len(run.outputs("verdict")) == 1


def test_a_sweep_over_two_layers_registers_the_best_of_each(
    finished: ContainerRun, image: str, workspace: Path, folder: Path
) -> None:
    overrides = ["sweep_pairs.layers=[1, 2]", "sweep_pairs.architectures=[topk]", "sweep.grid={k: [8, 16]}"]
    run = run_pipeline(image, folder, workspace, finished.registry, "sweep", ASKED, overrides)
    assert len(run.outputs("sweep")) == len(run.outputs("register")) == 2
    weights = {}
    for output in run.outputs("sweep"):
        config = json.loads((output / "sae" / "config.json").read_text())
        weights[config["layer"]] = (output / "members" / "k16" / "sae" / "sae.safetensors").read_bytes()
    trained = finished.output("train_sae") / "sae" / "sae.safetensors"
    assert weights[2] == trained.read_bytes(), "a member is what train_sae gives, from one layer or from several"
    assert weights[1] != weights[2]
    page = (run.output("sweep-report").parent / "report").read_text(encoding="utf-8")
    names = {f"plmsae.esm_small.layer{layer}.topk" for layer in (1, 2)}
    assert all(f"models:/{name}/" in page for name in names)
    assert "not registered" not in page
    told = subprocess.run(
        [sys.executable, "-m", "plmsae.cli", "models", "--json"],
        cwd=workspace,
        env={**environment(workspace), "MLFLOW_TRACKING_URI": finished.registry},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert {model["name"] for model in json.loads(told.stdout)} == names
