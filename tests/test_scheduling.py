"""Tests that share an expensive fixture run in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.scheduling import FIRST, FOLDERS, MEMBERS, group
from tests.workspace import ROOT

SLOW = """
import time
import pytest

@pytest.mark.parametrize("number", range({}))
def test_where(number):
    time.sleep(0.1)
"""


def test_every_group_is_there() -> None:
    for name in (*FOLDERS, *FIRST):
        assert (ROOT / name).exists()
        assert group(f"{name}test_x.py::test_y" if name.endswith("/") else f"{name}::test_y") == name
    for name, folder in MEMBERS.items():
        assert (ROOT / name).exists()
        assert folder in FOLDERS
        assert group(f"{name}::test_y") == folder
    assert group("tests/saes/test_topk.py::test_y[1]") == "tests/saes/test_topk.py"


def test_a_group_stays_in_one_worker_and_what_takes_long_begins_first(tmp_path: Path) -> None:
    for path, count in (("saes/test_a", 6), ("saes/test_b", 6), ("containers/test_c", 2), ("containers/test_d", 1)):
        file = tmp_path / "tests" / f"{path}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SLOW.format(count))
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
    done = re.findall(r"\[(gw\d)\].*PASSED tests/(\w+/test_\w)", process.stdout)
    assert len(done) == 15
    workers = {file: {worker for worker, of in done if of == file} for _, file in done}
    assert {len(found) for found in workers.values()} == {1}
    assert workers["containers/test_c"] == workers["containers/test_d"]
    assert done[-1][1].startswith("saes/"), "the folder with the fewest tests must have begun first"
