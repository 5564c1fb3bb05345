"""A working folder with an embedded registry that is ready at once: its empty database is made once per session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from plmsae.registry.connection import connect


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty")
    with connect(root, create=True):
        pass
    return root / ".plmsae"


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
