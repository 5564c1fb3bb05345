"""Runs a compiled pipeline in real containers of our image.

kfp's Docker runner runs the package that `plmsae compile` writes, task by task, over podman. The containers have a
read-only root, no capability and the image's own user; the registry is an MLflow server with its own database.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
from tests.pipeline.local_runner import accept_conditions_on_named_outputs
from tests.workspace import ROOT

SOURCE = "data/swissprot.tsv.gz"


@dataclass(frozen=True)
class ContainerRun:
    """A finished run: the folder that its tasks shared, the registry's address, and how long it took."""

    folder: Path
    registry: str
    seconds: float

    def output(self, task: str) -> Path:
        """The output folder of a task that ran once."""
        (found,) = self.outputs(task)
        return found

    def outputs(self, task: str) -> list[Path]:
        """Its output folders, of every pair of a sweep."""
        return sorted(self.folder.rglob(f"{task.replace('_', '-')}/output"))


def wait_for(url: str, server: subprocess.Popen[Any], seconds: float = 120) -> None:
    """Return when the server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.3)
    raise AssertionError(f"{url} does not answer")


def run_pipeline(
    image: str,
    folder: Path,
    workspace: Path,
    registry: str,
    pipeline: str = "train",
    stages: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    **changed: Any,
) -> ContainerRun:
    """Run a compiled pipeline with the parameters of a working folder, in containers of `image`.

    Args:
        image: Reference of the image.
        folder: What the tasks share; the raw file goes there.
        workspace: The working folder.
        registry: Address of the registry.
        pipeline: Name of the pipeline.
        stages: Stages whose sections the run is asked for; by default those of `train`.
        overrides: Changes to its parameters, as after `--set`.
        changed: Arguments of the run that are to differ.
    """
    start = time.monotonic()
    package = compile_pipeline(pipeline, image=image, root=ROOT, allow_tag=True)
    spec = json_format.ParseDict(next(iter(yaml.safe_load_all(package))), PipelineSpec())
    for task in spec.root.dag.tasks.values():
        _without_retries(spec, task)
    arguments = pipeline_arguments(ParamsFile(workspace / "params.yaml", overrides), stages)
    raw = {"source": SOURCE, "source_sha256": sha256_file(workspace / SOURCE)}
    arguments |= {name: value for name, value in raw.items() if name in spec.root.input_definitions.parameters}
    arguments |= changed
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
        _conditions()
        with mended():
            pipeline_orchestrator.run_local_pipeline(pipeline_spec=spec, arguments=arguments)
    finally:
        os.umask(previous)
    return ContainerRun(folder, registry, time.monotonic() - start)


@cache
def _conditions() -> None:
    """kfp would take a condition for false whose value it does not find, and go on."""
    accept_conditions_on_named_outputs()


def _without_retries(spec: PipelineSpec, task: Any) -> None:
    """kfp would wait for minutes before it runs a failed task again."""
    task.ClearField("retry_policy")
    component = spec.components[task.component_ref.name]
    for inner in component.dag.tasks.values():
        _without_retries(spec, inner)
