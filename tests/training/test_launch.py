"""Real processes over a real store: what they give, and what happens when one, or whoever started them, goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.params import validate
from plmsae.training.checkpoint import latest_step
from plmsae.training.data import Scaled
from plmsae.training.job import Feed, Job
from plmsae.training.launch import train_together
from plmsae.training.loop import Trained, train_all
from plmsae.training.member import Failed, Plan
from plmsae.training.parameters import TrainSaeParams
from plmsae.training.session import Inputs, Result, train_members
from tests.saes.threads import on_each
from tests.stages.test_train_sae import SCALE, SMALL, make_store
from tests.training.streams import activations, small_config, small_settings

STEPS = 200


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), SCALE * activations(4000), SCALE * activations(1000, seed=1))


def feed(store: Path, **changes: object) -> Feed:
    given = Feed(str(store), 3, str(store.parent / "blocks"), 64)
    return replace(given, **changes)  # type: ignore[arg-type]


def plan(name: str = "sae", architecture: str = "batch_topk", **settings: object) -> Plan:
    given = {"num_steps": STEPS, "checkpoint_every": 20, "validate_every": 100, "num_valid_rows": 500, **settings}
    return Plan(small_config(architecture=architecture), small_settings(**given), name=name)


def alone(plans: list[Plan], store: Path, checkpoints: Path) -> list[Trained | Failed]:
    torch.set_num_threads(1)
    with feed(store).open(256, "cpu") as opened:
        source, valid = (Scaled(rows, SCALE) for rows in opened)
        return train_all(plans, source, valid, checkpoints)


def meanwhile(checkpoints: Path, act: Callable[[], None]) -> threading.Thread:
    """Do something once there is a newer checkpoint."""
    before = latest_step(checkpoints)

    def wait() -> None:
        deadline = time.monotonic() + 300
        while latest_step(checkpoints) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def workers(checkpoints: Path) -> list[int]:
    """Processes that work on the training, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(checkpoints / "job.json").encode() in arguments:
            rank = next(item for item in variables if item.startswith(b"RANK="))
            found[int(rank[5:])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_two_processes_survive_a_kill_and_a_sigterm(store: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    thread = meanwhile(killed, lambda: os.kill(workers(killed)[1], signal.SIGKILL))
    with pytest.raises(TryAgainError, match="process 1 of 2 of the training ended with signal SIGKILL") as error:
        train_together([plan()], feed(store), killed, 2)
    thread.join()
    step = latest_step(killed)
    assert step is not None
    assert error.value.where == f"last checkpoint: step {step}"
    assert not workers(killed)

    thread = meanwhile(killed, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TryAgainError, match="stopped by SIGTERM: last checkpoint: step"):
        train_together([plan()], feed(store), killed, 2)
    thread.join()
    stopped = latest_step(killed)
    assert stopped is not None
    assert step < stopped < STEPS
    assert not workers(killed)

    (resumed,) = train_together([plan()], feed(store), killed, 2)
    # Half of each batch was another process's, and it is the training that one process does.
    (single,) = alone([plan()], store, tmp_path / "alone")
    assert isinstance(resumed, Trained)
    assert isinstance(single, Trained)
    for row, wanted in zip(resumed.curves, single.curves, strict=True):
        assert row["valid_fvu"] == pytest.approx(wanted["valid_fvu"], rel=1e-3)
    with pytest.raises(UserError, match="world size was 2 and is 1"):
        alone([plan()], store, killed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_processes_end_with_whoever_started_them(store: Path, tmp_path: Path) -> None:
    code = (
        "from tests.training.test_launch import *\n"
        f"train_together([plan(num_steps=10**6)], feed(Path({str(store)!r})), Path({str(tmp_path)!r}), 2)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    meanwhile(tmp_path, launcher.kill).join()
    launcher.wait()
    assert latest_step(tmp_path)
    deadline = time.monotonic() + 10
    while workers(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not workers(tmp_path)


def test_what_a_process_says_is_what_the_caller_gets(store: Path, tmp_path: Path) -> None:
    missing = replace(feed(store), store=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere. is not an activation store"):
        train_together([plan()], missing, tmp_path / "checkpoints", 1)


def run_members(checkpoints: Path, store: Path, members: list[str], **changes: object) -> dict[str, Result | Failed]:
    own = {"num_latent_max_rows": 1000, "num_test_rows": 1000, "tokens": 10_000, "validate_every": 2, **changes}
    given = {
        name: {**SMALL, **own, "architecture": name.split()[0], "learning_rate": 0.9 if "wild" in name else 0.003}
        for name in members
    }
    params = {name: validate(TrainSaeParams, values, section="train_sae") for name, values in given.items()}
    return train_members(params, Inputs(store, None, checkpoints, checkpoints))


@pytest.mark.long  # the same with other parameters: the first test of this file, and a TrainJob's of tests/cluster
def test_parameters_divide_the_batches(store: Path, tmp_path: Path) -> None:
    (one,) = run_members(tmp_path / "one", store, ["topk"]).values()
    (two,) = run_members(tmp_path / "two", store, ["topk"], num_processes=2, parallel="data").values()
    assert isinstance(one, Result)
    assert isinstance(two, Result)
    assert "processes" not in one.record
    assert two.record["processes"] == 2
    assert two.metrics["fvu"] == pytest.approx(one.metrics["fvu"], rel=1e-3)


@pytest.mark.slow
def test_parameters_deal_the_saes_out(store: Path, tmp_path: Path) -> None:
    names = ["topk", "l1_april wild", "relu"]
    one = run_members(tmp_path / "one", store, ["topk", "relu"])
    apart = run_members(tmp_path / "apart", store, names, num_processes=2, parallel="independent")
    assert list(apart) == names
    for name, wanted in one.items():
        found = apart[name]
        assert isinstance(found, Result)
        assert isinstance(wanted, Result)
        for key, tensor in wanted.sae.state_dict().items():
            assert torch.equal(found.sae.state_dict()[key], tensor), key
        assert found.record == wanted.record
        assert found.curves == wanted.curves
    wild = apart["l1_april wild"]
    assert isinstance(wild, Failed)
    assert wild.name == "l1_april wild"
    assert "diverged" in wild.problem


def test_a_batch_must_be_divisible(store: Path) -> None:
    def act(group: object) -> str:
        with pytest.raises(UserError, match="256 rows cannot be divided among 3") as error:
            feed(store).open(256, "cpu", group).__enter__()  # type: ignore[arg-type]
        return error.value.fix or ""

    assert set(on_each(3, act)) == {"make it 255"}


def test_a_job_comes_back_from_its_file_as_it_was(store: Path, tmp_path: Path) -> None:
    item = plan("named", "topk", resample_steps=(5, 9), betas=(0.9, 0.99), clip_norm=None, learning_rate=1 / 3)
    job = Job([item, plan("other")], feed(store, sequences="x.parquet"), tmp_path / "checkpoints")
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(UserError, match="is not the file of a training"):
        Job.read(tmp_path / "job.json")
