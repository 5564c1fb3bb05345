"""kfp's Docker runner over podman: failures are failures, with their log; shown to need the mending."""

import contextlib
from pathlib import Path

import docker
import pytest
import requests
from kfp import dsl, local
from kfp.local import docker_task_handler

from tests.containers.docker_runner import mended, run_container
from tests.containers.marks import CONTAINERS
from tests.containers.podman import Podman

pytestmark = CONTAINERS


def component(image: str, script: str) -> object:
    @dsl.container_component
    def task() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image=image, command=["/bin/sh", "-c"], args=[script])

    return task


def outcome(image: str, script: str, folder: Path) -> str:
    """Run a one-task pipeline; 'success' or 'failure'."""
    runner = local.DockerRunner(
        network_mode="none", cap_drop=["ALL"], read_only=True, labels={"plmsae-test": folder.name}
    )
    (folder / "workspace").mkdir(exist_ok=True)
    local.init(runner, pipeline_root=str(folder), workspace_root=str(folder / "workspace"))
    try:
        component(image, script)()  # type: ignore[operator]
    except RuntimeError as error:
        return f"failure: {error}"
    return "success"


def left_behind(podman: Podman, folder: Path) -> list[str]:
    """Ids of the containers of `outcome` that are still there."""
    return podman("ps", "--all", "--quiet", "--filter", f"label=plmsae-test={folder.name}").stdout.split()


@pytest.mark.parametrize("script", ["echo said before; exit 3", "sleep 1; echo said before; exit 3"])
def test_a_failing_container_is_a_failure_with_its_log(
    docker_host: str, image: str, script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mended():
        assert "FAILURE" in outcome(image, script, tmp_path)
    assert "said before" in capsys.readouterr().out


def test_a_container_that_works_is_a_success_and_leaves_nothing(
    docker_host: str, image: str, tmp_path: Path, podman: Podman, capsys: pytest.CaptureFixture[str]
) -> None:
    with mended():
        assert outcome(image, "echo fine", tmp_path) == "success"
    assert "fine" in capsys.readouterr().out
    assert left_behind(podman, tmp_path) == []


def test_a_task_may_be_silent_for_longer_than_the_client_waits(docker_host: str, image: str) -> None:
    with contextlib.closing(docker.from_env(timeout=2)) as client:
        assert run_container(client, image, ["sh", "-c", "sleep 4; exit 7"], {}, network_mode="none") == 7


def test_without_the_mending_a_failure_is_taken_for_success(
    docker_host: str, image: str, tmp_path: Path, podman: Podman
) -> None:
    assert docker_task_handler.run_docker_container is not run_container
    told = "failure"
    for _ in range(3):
        try:
            told = outcome(image, "exit 3", tmp_path)
        except (docker.errors.APIError, requests.exceptions.RequestException) as error:
            told = f"lost: {error}"  # kfp waits for a container that is gone
        if not told.startswith("failure"):
            break
    for container in left_behind(podman, tmp_path):
        podman("rm", "--force", "--ignore", container)
    assert not told.startswith("failure"), (
        "kfp reports failures under podman by itself now: docker_runner.py is not needed"
    )


def test_a_missing_image_is_named_and_nothing_is_pulled(docker_host: str, tmp_path: Path) -> None:
    with mended():
        told = outcome("localhost/no-such-image:1", "true", tmp_path)
    assert "image 'localhost/no-such-image:1' is not here" in told
    assert "docker/build.sh" in told
