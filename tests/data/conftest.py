from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Dvc = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what git has of the demo data: the DVC files and the remote, no `data/` and no cache."""
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copy(ROOT / "data.dvc", folder)
    shutil.copytree(ROOT / "demo", folder / "demo")
    return folder


@pytest.fixture
def dvc(checkout: Path, tmp_path: Path) -> Dvc:
    """Runs `dvc` in the checkout, with an empty home and no network proxy or credentials of its surroundings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "DVC_"))}
    environment |= {"HOME": str(tmp_path), "DVC_NO_ANALYTICS": "1"}

    def run(*arguments: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=checkout,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("config", "core.no_scm", "true")
    return run
