"""`kill -9` in each stage, then `dvc repro`: the outputs are byte for byte those of an undisturbed run."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from plmsae.stages.catalog import stages_of
from tests.pipeline.conftest import Finished
from tests.workspace import call, environment, make_workspace, output_bytes


def kill_while_working(root: Path, stage_id: str, fraction: float, seconds: float) -> bool:
    """Start a stage, kill it at a fraction of its usual working time; True if it was still working."""
    staging = root / ".plmsae" / "staging" / stage_id
    process = subprocess.Popen(
        ["plmsae", "run", stage_id],
        cwd=root,
        env=environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not staging.exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(fraction * seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_stages_end_in_the_bytes_of_an_undisturbed_run(finished: Finished, tmp_path: Path) -> None:
    expected = output_bytes(finished.root)
    assert {name.split("/")[0] for name in expected} == {stage.name for stage in stages_of("train").values()}

    root = make_workspace(tmp_path / "work")
    chance = random.Random(0)
    hits = 0
    for stage_id in stages_of("train"):
        hits += kill_while_working(root, stage_id, chance.random(), 0.5 * finished.seconds[stage_id])
        call(root, "dvc", "repro", "--single-item", stage_id)
    assert hits >= len(stages_of("train")) // 2, "most kills must have met a working stage"
    got = output_bytes(root)
    assert got.keys() == expected.keys()
    different = [name for name in expected if got[name] != expected[name]]
    assert not different
    assert not any((root / ".plmsae" / "checkpoints").iterdir())
