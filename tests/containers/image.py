"""The image under test: built with docker/build.sh when its contents changed, found again by their checksum."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.containers.podman import Podman
from tests.workspace import ROOT

NAME = "localhost/plmsae-test"
BASE = "localhost/plmsae-test-base:bookworm"
SOURCES = ("docker/Dockerfile", "docker/requirements.txt", "docker/finish.sh", ".dockerignore", "pyproject.toml", "src")
BUILD_SECONDS = 1500


def content_sha256() -> str:
    """Checksum of everything that the image is made of; README.md and LICENSE do not change how it works."""
    digest = hashlib.sha256()
    for name in SOURCES:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts and ".egg-info" not in str(file):
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def base_image(podman: Podman) -> str | None:
    """A base by digest: `PLMSAE_TEST_BASE_IMAGE`, python:3.11-slim where it was pulled, or one made by debootstrap."""
    if given := os.environ.get("PLMSAE_TEST_BASE_IMAGE"):
        return given
    for name in ("docker.io/library/python:3.11-slim", BASE):
        found = podman("image", "inspect", "--format", "{{index .RepoDigests 0}}", name, check=False)
        if found.returncode == 0:
            return found.stdout.strip()
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        return None
    made = subprocess.run(
        [str(ROOT / "docker" / "base.sh"), BASE],
        env=podman.env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-4000:]
    return made.stdout.strip()


def pip_options(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Environment and options of a build that takes packages from where this machine's pip does.

    Local folders are mounted below /dev, which is in memory: a mount elsewhere would leave an empty folder in a layer.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in {"index-url", "extra-index-url", "find-links", "cert", "trusted-host", "timeout", "default-timeout"}:
            settings[key.removeprefix("default-")] = value.strip("'\"").replace("\\n", " ")
    options: list[str] = []
    certificate = settings.pop("cert", None)
    for number, path in enumerate(
        sorted(set(re.findall(r"(?:file://|(?<![\w:/]))(/[^\s]+)", " ".join(settings.values()))))
    ):
        inside = f"/dev/pip/{number}"
        # An index of files refers to them by links that leave its own folder.
        outside, below = (path, "") if not path.endswith("/simple") else (path.removesuffix("/simple"), "/simple")
        options += ["--volume", f"{outside}:{inside}:ro"]
        settings = {key: value.replace(path, inside + below) for key, value in settings.items()}
    if certificate:
        options += ["--volume", f"{certificate}:/dev/pip/ca.crt:ro"]
        settings["cert"] = "/dev/pip/ca.crt"
    if not settings:
        return {}, []
    config = folder / "pip.conf"
    config.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")
    # A machine with package sources of its own has its torch there too.
    own_sources = {"index-url", "extra-index-url", "find-links"} & set(settings)
    return {"PIP_CONF": str(config)}, [*options, *(["--build-arg", "TORCH_INDEX="] if own_sources else [])]


def build(podman: Podman, base: str, folder: Path) -> str:
    """The reference of the image of the present sources; builds it unless it is there.

    Args:
        podman: The command line.
        base: Base image by digest.
        folder: For files that only the build reads.
    """
    tag = f"{NAME}:{content_sha256()[:16]}"
    if podman("image", "exists", tag, check=False).returncode == 0:
        return tag
    environment, options = pip_options(folder)
    process = subprocess.run(
        [str(ROOT / "docker" / "build.sh"), "cpu", tag, "--network", "host", *options],
        env={**podman.env, **environment, "BASE_IMAGE": base, "ENGINE": "podman"},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert process.returncode == 0, f"the image cannot be built\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    for old in podman("images", "--format", "{{.Repository}}:{{.Tag}}", NAME).stdout.split():
        if old != tag:
            podman("image", "rm", old, check=False)
    return tag
