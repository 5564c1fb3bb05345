"""A working folder with an embedded registry that is ready at once: its empty database is made once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from plmsae.registry.connection import connect

_MADE: list[Path] = []


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not _MADE:  # the fixture is imported into several folders, each of which has it as its own
        root = tmp_path_factory.mktemp("empty")
        with connect(root, create=True):
            pass
        _MADE.append(root / ".plmsae")
    return _MADE[0]


@pytest.fixture
def root(tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with an empty registry in it."""
    torch.set_num_threads(1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(empty_registry, folder / ".plmsae")
    monkeypatch.chdir(folder)
    return folder
