"""`kill -9` in each stage, SIGTERM in the training, then `dvc repro`: the outputs are those of an undisturbed run."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from plmsae.stages.catalog import stages_of
from tests.pipeline.conftest import Finished
from tests.workspace import call, environment, output_bytes

# Every stage; of the evaluations, which differ in nothing that a kill could meet, one.
KILLED = [
    stage_id
    for stage_id, stage in stages_of("train").items()
    if stage.name != "evaluate" or stage_id == "evaluate@fidelity"
]


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


def stop_training(root: Path) -> None:
    """SIGTERM once the training has a checkpoint: it writes another one and says "try again"."""
    process = subprocess.Popen(
        ["plmsae", "run", "train_sae"],
        cwd=root,
        env=environment(root),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(root.glob(".plmsae/checkpoints/*/step-*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)  # a second or two, but on a busy machine
    assert process.returncode == 75, said
    found = re.search(r"the training was stopped by SIGTERM: a checkpoint after step (\d+) of \d+ is kept", said)
    assert found is not None, said
    assert list(root.glob(f".plmsae/checkpoints/*/step-{int(found[1]):012d}"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_stages_end_in_the_bytes_of_an_undisturbed_run(finished: Finished, tmp_path: Path) -> None:
    expected = output_bytes(finished.root)
    assert {name.split("/")[0] for name in expected} == {stage.name for stage in stages_of("train").values()}

    root = finished.copy_to(tmp_path / "work")
    for memory in (root / ".plmsae", root / ".dvc" / "cache"):  # nothing is registered, and nothing can be fetched
        shutil.rmtree(memory)
    chance = random.Random(0)

    def kill(stage_id: str) -> bool:
        """Kill a stage whose inputs are there and whose output is not."""
        if stage_id == "train_sae":
            stop_training(root)
        return kill_while_working(root, stage_id, chance.random(), 0.5 * finished.seconds[stage_id])

    # From the last to the first, so that each finds what it reads, and neither its own output nor what follows from it.
    hits = 0
    others = [stage_id for stage_id in KILLED if stage_id not in ("register", "promote")]
    for stage_id in ("promote", "register", *reversed(others)):
        shutil.rmtree(root / stages_of("train")[stage_id].output)
        if stage_id in others:
            hits += kill(stage_id)
    ran = call(root, "dvc", "repro", *others, timeout=600).stdout
    assert set(re.findall(r"Running stage '([^']+)'", ran)) == {*others}
    for stage_id in ("register", "promote"):  # what they find in the registry is what the stage before has done
        hits += kill(stage_id)
        call(root, "dvc", "repro", "--single-item", stage_id)
    assert hits >= len(KILLED) // 2, "most kills must have met a working stage"
    got = output_bytes(root)
    assert got.keys() == expected.keys()
    different = [name for name in expected if got[name] != expected[name]]
    assert not different
    assert not any((root / ".plmsae" / "checkpoints").iterdir())
