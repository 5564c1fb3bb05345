"""One undisturbed run of the small pipeline, shared by the tests of this folder; nobody changes it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from plmsae.stages.catalog import stages_of
from tests.workspace import call, environment, make_workspace


@dataclass(frozen=True)
class Finished:
    """The working folder of a finished run, and how many seconds each of its stages took."""

    root: Path
    seconds: dict[str, float]

    def copy_to(self, root: Path) -> Path:
        """A copy that a test may change."""
        return shutil.copytree(self.root, root, symlinks=True)


def repro(root: Path) -> dict[str, float]:
    """`dvc repro`, and how many seconds each of the stages took that it ran."""
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=root,
        env={**environment(root), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    starts, said = {}, []
    for line in process.stdout:
        said.append(line)
        if found := re.search(r"Running stage '([^']+)'", line):
            starts[found[1]] = time.monotonic()
    assert process.wait(timeout=60) == 0, "".join(said)
    ends = [*list(starts.values())[1:], time.monotonic()]
    return {stage_id: end - start for (stage_id, start), end in zip(starts.items(), ends, strict=True)}


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker of pytest that wants it makes, and all of them read."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each worker has a folder of its own in it
    folder, complete = base / name, base / f"{name}.complete"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`dvc repro`, then a commit of its dvc.lock."""

    def make(folder: Path) -> None:
        root = make_workspace(folder / "work")
        seconds = repro(root)
        assert seconds.keys() == stages_of("train").keys()
        call(root, "git", "add", "--all")
        call(root, "git", "commit", "--quiet", "--message", "run")
        (folder / "seconds.json").write_text(json.dumps(seconds))

    folder = made_once(tmp_path_factory, "undisturbed", make)
    return Finished(folder / "work", json.loads((folder / "seconds.json").read_text()))


@pytest.fixture(scope="session")
def swept(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `plmsae run sweep` alone gives on the outputs of that run."""

    def make(folder: Path) -> None:
        call(finished.copy_to(folder), "plmsae", "run", "sweep", "--output", "outputs/alone")

    return made_once(tmp_path_factory, "sweep_alone", make) / "outputs" / "alone"


@pytest.fixture(scope="session")
def champion(finished: Finished) -> str:
    """The URI of the model that the run made champion."""
    (model,) = json.loads(call(finished.root, "plmsae", "models", "--json").stdout)
    assert "champion" in model["aliases"]
    return f"models:/{model['name']}@champion"
