"""Tests that share an expensive fixture run in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.scheduling import GROUPS, group
from tests.workspace import ROOT

SLOW_FIXTURE = """
import os, time
import pytest

@pytest.mark.parametrize("number", range(6))
def test_where(number):
    time.sleep(0.1)
"""


def test_every_group_is_there() -> None:
    for start, name in GROUPS:
        assert (ROOT / start).exists()
        assert group(f"{start}test_x.py::test_y" if start.endswith("/") else f"{start}::test_y") == name
    assert group("tests/saes/test_topk.py::test_y[1]") == "tests/saes/test_topk.py::test_y[1]"


def test_a_group_stays_in_one_worker(tmp_path: Path) -> None:
    for folder in ("containers", "saes"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / f"test_{folder}.py").write_text(SLOW_FIXTURE)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_configure\n")
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadgroup", "-v", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    # Where the others go is a matter of speed; that each is a group of its own is asserted above.
    assert len(set(re.findall(r"\[(gw\d)\].*test_containers", process.stdout))) == 1
