"""podman, its Docker-compatible service and the image, once per session; skipped with the reason where they are not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.image import base_image, build
from tests.containers.pipeline_run import ContainerRun, run_pipeline, wait_for
from tests.containers.podman import Podman, service, why_not, write_config
from tests.s3server import free_port
from tests.workspace import call, environment, make_workspace


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    if reason := why_not():
        pytest.skip(reason)
    return Podman(write_config(tmp_path_factory.mktemp("podman") / "containers.conf"))


@pytest.fixture(scope="session")
def image(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Reference of the `cpu` image of the present sources."""
    base = base_image(podman)
    if base is None:
        pytest.skip("no base image: set PLMSAE_TEST_BASE_IMAGE, pull python:3.11-slim, or install debootstrap")
    return build(podman, base, tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def docker_host(podman: Podman) -> Iterator[str]:
    """podman's service, and `DOCKER_HOST` set to it."""
    with tempfile.TemporaryDirectory(prefix="plmsae-") as folder, service(podman, Path(folder)) as address:
        previous = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = address
        yield address
        if previous is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = previous


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Folders made by this process can be written by the image's user."""
    previous = os.umask(0)
    yield
    os.umask(previous)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `dvc repro` trained the SAE."""
    root = make_workspace(tmp_path_factory.mktemp("dvc") / "work")
    call(root, "dvc", "repro", "train_sae")
    return root


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def finished(
    image: str, docker_host: str, workspace: Path, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> ContainerRun:
    """The training pipeline in containers: version 1 of its SAE is in the registry."""
    return run_pipeline(image, tmp_path_factory.mktemp("containers"), workspace, registry)
