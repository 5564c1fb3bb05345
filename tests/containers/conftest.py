"""podman, its Docker-compatible service and the image, once per session; skipped with the reason where they are not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.image import base_image, build
from tests.containers.podman import Podman, service, why_not, write_config


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
