"""podman for tests: settings that also work in a small virtual machine, and its Docker-compatible service."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# How a stage runs in a cluster: no capability, nothing writable but /tmp, a user that the host does not know.
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--user", "10001")


@dataclass(frozen=True)
class Podman:
    """The command line of podman with settings of its own, which leave those of the machine alone."""

    config: Path

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.config)}

    def __call__(
        self, *arguments: str, check: bool = True, timeout: float = 300, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `podman ARGUMENTS`; with `check`, a failure shows what it printed."""
        process = subprocess.run(
            ["podman", *arguments],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and process.returncode:
            raise AssertionError(f"podman {' '.join(arguments)} -> {process.returncode}\n{process.stderr[-4000:]}")
        return process

    def run(self, image: str, *command: str, options: tuple[str, ...] = LOCKED_DOWN, check: bool = True) -> str:
        """Run a command in a new container without network; its stdout (and stderr after it without `check`)."""
        process = self("run", "--rm", "--network", "none", *options, image, *command, check=check)
        return process.stdout if check else process.stdout + process.stderr


def why_not() -> str | None:
    """Why containers cannot be run here, or None."""
    if shutil.which("podman") is None:
        return "podman is not installed (apt-get install podman runc)"
    return None


def write_config(path: Path) -> Path:
    """containers.conf: no limit above those of this process, and no systemd."""
    limits = {name: _within(number, most) for name, (number, most) in _LIMITS.items()}
    shown = ", ".join(f'"{name}={limit}:{limit}"' for name, limit in limits.items())
    lines = ["[containers]", f"default_ulimits = [{shown}]", "[engine]"]
    lines += ['cgroup_manager = "cgroupfs"', 'events_logger = "file"']
    if shutil.which("runc"):  # crun refuses hosts with both versions of cgroups
        lines.append('runtime = "runc"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# podman asks for more by default, which a process without the right to raise limits may not have.
_LIMITS = {"nofile": (resource.RLIMIT_NOFILE, 1 << 16), "nproc": (resource.RLIMIT_NPROC, 1 << 15)}


def _within(number: int, most: int) -> int:
    hard = resource.getrlimit(number)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


@contextmanager
def service(podman: Podman, folder: Path) -> Iterator[str]:
    """podman's Docker-compatible API for the length of the block.

    Args:
        podman: The command line.
        folder: Where its socket goes; the path of a socket has at most 107 characters.

    Yields:
        The value for `DOCKER_HOST`.
    """
    path = folder / "podman.sock"
    address = f"unix://{path}"
    process = subprocess.Popen(
        ["podman", "system", "service", "--time", "0", address],
        env=podman.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while not _answers(path):
            assert process.poll() is None, "podman's service ended"
            assert time.monotonic() < deadline, "podman's service does not answer"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
