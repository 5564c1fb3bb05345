"""The compiled training pipeline in real containers of our image: the same bytes as `dvc repro` at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.containers.marks import CONTAINERS
from tests.containers.pipeline_run import ContainerRun, run_pipeline
from tests.workspace import environment

pytestmark = CONTAINERS


def test_the_sae_is_the_same_byte_for_byte(finished: ContainerRun, workspace: Path) -> None:
    ours, theirs = workspace / "outputs" / "train_sae" / "sae", finished.output("train_sae") / "sae"
    weights = (theirs / "sae.safetensors").read_bytes()
    assert weights == (ours / "sae.safetensors").read_bytes()
    assert len(weights) > 100_000
    configs = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (ours, theirs)]
    for config in configs:  # a manifest names the version of Python, whose last digit may differ in the image
        config["training"].pop("activations_manifest_sha256")
    assert configs[0] == configs[1]


@pytest.mark.parametrize("stage", ["ingest", "validate", "extract_activations", "train_sae"])
def test_all_other_files_and_their_records_are_the_same(finished: ContainerRun, workspace: Path, stage: str) -> None:
    ours, theirs = (_manifest(folder) for folder in (workspace / "outputs" / stage, finished.output(stage)))
    for manifest in (ours, theirs):
        manifest["environment"].pop("python")
        for name in ("sae/config.json", "sae/MODEL_CARD.md"):  # they name the manifest of the activations
            manifest["files"].pop(name, None)
    for part in ("environment", "params", "source_files", "files"):
        assert theirs[part] == ours[part], part


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def test_the_registry_holds_the_version_and_promoted_it(finished: ContainerRun, workspace: Path) -> None:
    command = [sys.executable, "-m", "plmsae.cli", "models", "--json"]
    told = subprocess.run(
        command,
        cwd=workspace,
        env={**environment(workspace), "MLFLOW_TRACKING_URI": finished.registry},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    (model,) = [model for model in json.loads(told.stdout) if model["version"] == 1]
    assert model["name"] == "plmsae.esm_small.layer2.topk"
    assert "candidate" in model["aliases"]


def test_the_files_belong_to_the_images_user(finished: ContainerRun) -> None:
    assert (finished.output("train_sae") / "manifest.json").stat().st_uid == 10001


def test_wrong_parameters_fail_the_task_with_words(
    finished: ContainerRun, image: str, workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match=r"FAILURE|failed"):
        run_pipeline(image, tmp_path, workspace, finished.registry, ingest_params='{"max_proteins": "many"}')
    told = capsys.readouterr().out
    assert "max_proteins" in told
    assert "fix:" in told
    assert "Traceback" not in told
