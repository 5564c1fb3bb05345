"""kfp's Docker runner, mended for podman; the only place where kfp is patched for containers.

kfp 2.17 asks for containers that remove themselves. Under podman such a container is gone before its exit code can be
read, and kfp then assumes success; `test_docker_runner.py` shows it. Here the container is removed after its log and
its exit code were read, and an image that is missing is an error instead of a pull.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kfp.local import docker_task_handler

SILENT_SECONDS = 1800


def run_container(client: Any, image: str, command: list[str], volumes: Mapping[str, Any], **arguments: Any) -> int:
    """Run one task; takes the place of `kfp.local.docker_task_handler.run_docker_container`.

    Args:
        client: A `docker.DockerClient`.
        image: Reference of the image, which must be here.
        command: The whole command.
        volumes: Mounts, as docker-py takes them.
        arguments: Other arguments of `containers.run`.

    Returns:
        The exit code.

    Raises:
        RuntimeError: The image is not here.
    """
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound as error:
        raise RuntimeError(f"image '{image}' is not here; build it: docker/build.sh cpu {image}") from error
    client.api.timeout = SILENT_SECONDS  # by default a task that prints nothing for a minute is given up
    container = client.containers.run(image=image, command=command, detach=True, volumes=volumes, **arguments)
    try:
        for line in container.logs(stream=True, follow=True):
            print(line.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


@contextmanager
def mended() -> Iterator[None]:
    """kfp's Docker runner uses `run_container` within the block."""
    original = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = original
