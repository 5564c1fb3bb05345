"""Curves as runs of Weights & Biases: what is asked before anything is sent, and, with the library, what is written."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from plmsae.errors import UserError
from plmsae.training.loop import train
from tests.training.streams import Rows, activations, small_config, small_settings

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    settings, source = small_settings(wandb_project="proteins"), Rows(activations(2000), 256)
    with pytest.raises(UserError, match="Weights & Biases is not installed") as error:
        train(small_config(), "auto", source, source, settings, tmp_path)
    assert "pip install" in (error.value.fix or "")
    assert error.value.where == "train_sae.wandb_project"


# Two SAEs, stopped after 15 of 30 steps and taken up again; and then without a key. Nothing may reach a network.
SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path[:0] = {paths}
sys.path.append({installed})
import torch
from plmsae.errors import TryAgainError, UserError
from plmsae.training.loop import train_all
from plmsae.training.member import Plan
from tests.training.streams import Rows, activations, small_config, small_settings
from tests.training.test_interruption import Signalling

torch.set_num_threads(1)
settings = small_settings(num_steps=30, validate_every=5, wandb_project="proteins")
configs = {{"first": small_config(), "b": small_config(architecture="relu", k=64)}}
plans = [Plan(config, settings, name=name) for name, config in configs.items()]
folder, valid = Path("checkpoints"), Rows(activations(2000, seed=1), 256)
os.environ.update(WANDB_MODE="offline", WANDB_API_KEY="0123456789" * 4)
try:
    train_all(plans, Signalling(activations(8000), 16), valid, folder)
except TryAgainError as error:
    print(error.problem)
train_all(plans, Rows(activations(8000), 256), valid, folder)
del os.environ["WANDB_MODE"], os.environ["WANDB_API_KEY"]
try:
    train_all(plans, Rows(activations(8000), 256), valid, Path("others"))
except UserError as error:
    print(error.problem, "|", error.fix)
"""
# Reads what offline runs wrote, records of protobuf in LevelDB's log format behind 7 bytes: rows and configuration.
READ = """
import json, sys
from pathlib import Path
sys.path.append({installed})
from wandb.proto import wandb_internal_pb2

def records(data):
    place, part = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, part = wandb_internal_pb2.Record.FromString(part), b""
            yield record

for path in sys.argv[1:]:
    rows, config, run = [], {{}}, ""
    for record in records(Path(path).read_bytes()):
        if record.HasField("history"):
            items = record.history.item
            rows.append({{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}})
        if record.HasField("run"):
            run = record.run.run_id + " " + record.run.display_name
            config |= {{item.key: json.loads(item.value_json) for item in record.run.config.update}}
    print(json.dumps({{"run": run, "rows": rows, "config": config}}))
"""


@pytest.mark.long
def test_offline_runs_hold_every_row_once_and_no_key(tmp_path: Path) -> None:
    """`long` because it takes wandb from the package registry, into a folder of its own behind what is installed."""
    installed = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(installed), "wandb>=0.21,<1"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    work = tmp_path / "work"
    work.mkdir()
    places = {"paths": [str(ROOT / "src"), str(ROOT)], "installed": repr(str(installed))}

    def python(script: str, *arguments: str) -> str:
        command = [sys.executable, "-c", script.format(**places), *arguments]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = python(SCRIPT)
    assert "a checkpoint after step 15 of 30 is kept" in said
    assert "has no API key | set the environment variable WANDB_API_KEY" in said
    files = sorted(work.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    runs = [json.loads(line) for line in python(READ, *map(str, files)).splitlines()]
    assert len({run["run"] for run in runs}) == 2  # a stopped training goes on in its run
    for name in ("first", "b"):
        last = [run for run in runs if run["run"].endswith(f" {name}")][-1]
        assert [row["step"] for row in last["rows"]] == [5, 10, 15, 20, 25, 30]
        assert {"fvu", "valid_fvu", "l0", "valid_l0", "dead_fraction", "learning_rate", "tokens"} <= set(
            last["rows"][0]
        )
        assert last["config"]["learning_rate"] == 3e-3
    for path in work.glob("wandb/**/*"):
        for secret in (b"0123456789" * 4, socket.gethostname().encode()):
            assert path.is_dir() or secret not in path.read_bytes(), (path, secret)
