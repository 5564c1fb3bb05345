"""The compiled training pipeline in real containers of our image: the same bytes as `dvc repro` at the end.

kfp's Docker runner runs the package that `plmsae compile` writes, task by task, over podman. The containers have a
read-only root, no capability and the image's own user; the registry is an MLflow server with its own database.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import local
from kfp.local import pipeline_orchestrator
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from plmsae.artifacts.checksums import sha256_file
from plmsae.cluster.compile import compile_pipeline
from plmsae.cluster.sections import pipeline_arguments
from plmsae.params import ParamsFile
from tests.containers.docker_runner import mended
from tests.containers.marks import CONTAINERS
from tests.s3server import free_port
from tests.workspace import ROOT, call, environment, make_workspace

pytestmark = CONTAINERS

SOURCE = "data/swissprot.tsv.gz"


@dataclass(frozen=True)
class ContainerRun:
    """A finished run: the folder that the tasks shared, the registry's address, and what the tasks printed."""

    folder: Path
    registry: str
    seconds: float

    def output(self, task: str) -> Path:
        """The output folder of a task."""
        (found,) = self.folder.glob(f"*/{task.replace('_', '-')}/output")
        return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `dvc repro` trained the SAE."""
    root = make_workspace(tmp_path_factory.mktemp("dvc") / "work")
    call(root, "dvc", "repro", "train_sae")
    return root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on this host; artifacts go through it."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")]
    server = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        uri = f"http://127.0.0.1:{port}"
        wait_for(f"{uri}/health", server)
        yield uri
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen[Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.3)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture(scope="module")
def finished(
    image: str, docker_host: str, workspace: Path, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> ContainerRun:
    folder = tmp_path_factory.mktemp("containers")
    start = time.monotonic()
    run_pipeline(image, folder, workspace, registry)
    return ContainerRun(folder, registry, time.monotonic() - start)


def run_pipeline(image: str, folder: Path, workspace: Path, registry: str, **changed: Any) -> None:
    """Run the compiled training pipeline with the parameters of a working folder, in containers of `image`."""
    package = compile_pipeline("train", image=image, root=ROOT, allow_tag=True)
    spec = json_format.ParseDict(next(iter(yaml.safe_load_all(package))), PipelineSpec())
    for task in spec.root.dag.tasks.values():
        _without_retries(spec, task)
    arguments = pipeline_arguments(ParamsFile(workspace / "params.yaml", []))
    arguments |= {"source": SOURCE, "source_sha256": sha256_file(workspace / SOURCE), **changed}
    previous = os.umask(0)  # the image's user writes into folders that kfp makes here
    try:
        folder.chmod(0o777)
        for parent in list(folder.parents)[:2]:
            parent.chmod(0o755)
        shared = folder / "workspace"  # not the pipeline root: kfp mounts a folder once
        for made in (shared, (folder / SOURCE).parent):
            made.mkdir(exist_ok=True)
        shutil.copy(workspace / SOURCE, folder / SOURCE)
        local.init(
            local.DockerRunner(
                network_mode="host",
                read_only=True,
                cap_drop=["ALL"],
                tmpfs={"/tmp": "rw,size=2g,mode=1777"},
                working_dir=str(folder),
                environment={"MLFLOW_TRACKING_URI": registry, "HF_HUB_OFFLINE": "1"},
            ),
            pipeline_root=str(folder),
            workspace_root=str(shared),
        )
        with mended():
            pipeline_orchestrator.run_local_pipeline(pipeline_spec=spec, arguments=arguments)
    finally:
        os.umask(previous)


def _without_retries(spec: PipelineSpec, task: Any) -> None:
    """kfp would wait for minutes before it runs a failed task again."""
    task.ClearField("retry_policy")
    component = spec.components[task.component_ref.name]
    for inner in component.dag.tasks.values():
        _without_retries(spec, inner)


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
    (model,) = json.loads(told.stdout)
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
