"""One undisturbed run of the small pipeline, shared by the tests of this folder; nobody changes it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from plmsae.stages.catalog import stages_of
from tests.workspace import call, make_workspace


@dataclass(frozen=True)
class Finished:
    """The working folder of a finished run, and how many seconds each of its stages took."""

    root: Path
    seconds: dict[str, float]

    def copy_to(self, root: Path) -> Path:
        """A copy that a test may change."""
        return shutil.copytree(self.root, root, symlinks=True)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`dvc repro`, stage by stage, then a commit of its dvc.lock."""
    root = make_workspace(tmp_path_factory.mktemp("undisturbed") / "work")
    seconds = {}
    for stage_id in stages_of("train"):
        start = time.monotonic()
        call(root, "dvc", "repro", "--single-item", stage_id)
        seconds[stage_id] = time.monotonic() - start
    call(root, "git", "add", "--all")
    call(root, "git", "commit", "--quiet", "--message", "run")
    return Finished(root, seconds)
