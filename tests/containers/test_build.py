"""What the image is made from, as far as it shows without building it."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from scripts import image_requirements
from tests.workspace import ROOT

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
DIGEST = "example.org/base@sha256:" + 64 * "a"


def wanted() -> dict[str, str]:
    """Distribution -> line of docker/requirements.txt."""
    return image_requirements.locked(ROOT / "docker" / "requirements.txt")


def test_the_requirements_are_those_of_the_lock() -> None:
    assert image_requirements.main(["--check"]) == 0
    lock = image_requirements.locked(ROOT / "requirements.lock")
    assert wanted().items() <= lock.items()


def test_an_outdated_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyproject.toml", "requirements.lock", "docker/requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(image_requirements, "ROOT", tmp_path)
    assert image_requirements.main(["--check"]) == 0
    target = tmp_path / "docker" / "requirements.txt"
    target.write_text("".join(line for line in target.open() if not line.startswith("numpy==")))
    assert image_requirements.main(["--check"]) == 1
    assert image_requirements.main([]) == 0
    assert image_requirements.main(["--check"]) == 0


def test_a_lock_that_lacks_something_needed_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (tmp_path / "requirements.lock").write_text(lock.replace("numpy==", "no-numpy=="))
    with pytest.raises(SystemExit, match="numpy"):
        image_requirements.render(tmp_path)


# What a task needs that starts a training on several nodes.
# wandb is a logger that a parameter asks for, and that says how to install it.
OWN = {"plmsae", "wandb"}
IN_TASKS = {"launch", "placement", "tasks", "train_job", "train_job_log", "train_job_run", "trainer_api"}


def test_what_starts_several_nodes_needs_nothing_else_of_its_room() -> None:
    for name in IN_TASKS:
        text = (ROOT / "src" / "plmsae" / "cluster" / f"{name}.py").read_text(encoding="utf-8")
        assert set(re.findall(r"plmsae\.cluster\.(\w+) import", text)) <= IN_TASKS


def test_the_image_holds_what_stages_import_and_nothing_of_the_workshop() -> None:
    providers = importlib.metadata.packages_distributions()
    for path in (ROOT / "src" / "plmsae").rglob("*.py"):
        if path.parent.name == "cluster" and path.stem not in IN_TASKS:
            continue  # needs kfp, and runs where pipelines are compiled
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names) - OWN:
                found = {canonicalize_name(name) for name in providers.get(top, [])}
                assert found & set(wanted()), f"{path.name} imports {top}, which the image does not hold"
    assert not set(wanted()) & {"kfp", "kubeflow", "dvc", "pytest", "moto", "mypy", "ruff", "torchvision", "pip"}


def test_both_targets_come_from_the_one_list() -> None:
    assert re.findall(r"^FROM \S+ AS (cpu|gpu)$", DOCKERFILE, re.MULTILINE) == ["gpu", "cpu"]
    assert set(re.findall(r"^FROM (\$\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE_IMAGE}"}
    assert re.search(r"^ARG BASE_IMAGE$", DOCKERFILE, re.MULTILINE), "a default would be a tag, which moves"
    # Versions are written down in one place.
    assert not re.search(r"[a-z]==\d", DOCKERFILE)


def test_the_cuda_libraries_are_locked_for_the_locked_torch() -> None:
    text = (ROOT / "docker" / "cuda.lock").read_text(encoding="utf-8")
    assert f"of {wanted()['torch']} " in text.splitlines()[0]
    cuda = image_requirements.locked(ROOT / "docker" / "cuda.lock")
    assert {"triton", "nvidia-cublas", "nvidia-nccl-cu13"} <= set(cuda)
    assert not set(cuda) & set(image_requirements.locked(ROOT / "requirements.lock"))


def test_the_build_sees_only_what_it_needs() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set(re.findall(r"(?:docker/\S+|\S+\.toml|README\.md|LICENSE|src)(?= )", _copies()))
    assert copied == allowed
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def _copies() -> str:
    return "\n".join(line for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line)


@pytest.mark.parametrize(
    ("arguments", "base", "told"),
    [
        (["tpu", "x:1"], DIGEST, "must be cpu or gpu, not 'tpu'"),
        (["cpu"], DIGEST, "no tag given"),
        (["cpu", "x:1"], "python:3.11-slim", "'python:3.11-slim' is not named by digest"),
        (["gpu", "x:1"], "", "is not named by digest"),
    ],
)
def test_the_build_script_refuses_in_words(arguments: list[str], base: str, told: str) -> None:
    process = _build(*arguments, base=base)
    assert process.returncode == 2
    assert told in process.stderr
    assert "fix:" in process.stderr


def test_the_build_script_passes_everything_on(tmp_path: Path) -> None:
    engine = tmp_path / "docker"
    engine.write_text('#!/bin/sh\necho "$@"\n')
    engine.chmod(0o755)
    process = _build("gpu", "x:1", "--no-cache", base=DIGEST, ENGINE=str(engine), PIP_CONF="/mirror/pip.conf")
    assert process.returncode == 0, process.stderr
    assert f"--target gpu --tag x:1 --build-arg BASE_IMAGE={DIGEST}" in process.stdout
    assert "--secret id=pip.conf,src=/mirror/pip.conf" in process.stdout
    assert process.stdout.rstrip().endswith("--no-cache .")
    assert "--layers" not in process.stdout, "an option of podman"


def _build(*arguments: str, base: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "docker" / "build.sh"), *arguments],
        env={"PATH": os.environ["PATH"], "BASE_IMAGE": base, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
