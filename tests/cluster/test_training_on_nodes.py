"""`train_sae` on two nodes: a TrainJob that really trains, from the verified store to the exported SAE."""

from __future__ import annotations

import csv
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from plmsae import cli
from plmsae.artifacts.manifest import manifest_sha256, verify
from plmsae.cluster import train_job_run
from plmsae.cluster.launch import NAMESPACE_VARIABLE, TRAIN_JOB_VARIABLE, TrainJobLauncher
from plmsae.cluster.placement import Placement
from plmsae.cluster.trainer_api import TrainJobs
from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json, validate
from plmsae.saes import load_folder
from plmsae.stages.execute import execute
from plmsae.stages.train_sae import STAGE
from plmsae.training.checkpoint import latest_step
from plmsae.training.parameters import TrainSaeParams
from tests.cluster.test_train_job import settings
from tests.cluster.test_train_job_run import once
from tests.cluster.trainer_server import Cluster, trainer_server
from tests.stages.test_executor_input import executor_input, task_values
from tests.stages.test_train_sae import SCALE, SMALL, make_store
from tests.training.streams import activations

UNTRACKED = dataclasses.replace(STAGE, tracked=False)
TRAINING = {**SMALL, "tokens": 10_240, "checkpoint_every": 5, "num_latent_max_rows": 2000, "num_test_rows": 1000}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with trainer_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_job_run, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(train_job_run, "LONGEST_SECONDS", 0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    return make_store(folder, SCALE * activations(3000), SCALE * activations(1000, seed=1))


def launcher(cluster: Cluster, state: Path, num_nodes: int = 2, num_processes: int = 1) -> TrainJobLauncher:
    ranks = {"num_nodes": num_nodes, "num_processes": num_processes}
    given = settings(Placement(gpu_type=None), **ranks, state_folder=str(state))

    def connect(namespace: str) -> TrainJobs:
        return TrainJobs(namespace, cluster.configuration())

    return TrainJobLauncher(given, "team", str(state.parent / "blocks"), connect)


def train(root: Path, store: Path, nodes: TrainJobLauncher | None, **changes: Any) -> Path:
    params = validate(TrainSaeParams, {**TRAINING, **changes}, section="train_sae")
    execute(UNTRACKED, params, root=root, inputs={"activations": store}, state=root / "state", nodes=nodes)
    return root / "outputs" / "train_sae"


@pytest.mark.slow
def test_two_nodes_train_the_sae_that_one_process_trains(
    cluster: Cluster, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "nodes" / "state"
    with caplog.at_level("INFO", "plmsae"):
        on_nodes = train(tmp_path / "nodes", store, launcher(cluster, state), num_nodes=2)
    assert "node 0 | train_sae" in caplog.text
    assert len(cluster.created) == 1
    assert list(state.glob("checkpoints/*")) == []
    assert verify(on_nodes).params["num_nodes"] == 2
    here = train(tmp_path / "here", store, None)
    ours, theirs = load_folder(on_nodes / "sae"), load_folder(here / "sae")
    # The same algorithm: only the order of sums differs.
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-3, atol=1e-3)
    curves = [[float(row["fvu"]) for row in rows(folder)] for folder in (on_nodes, here)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.long
def test_two_nodes_of_two_give_the_bytes_of_four_processes_although_a_node_is_lost(
    cluster: Cluster, store: Path, tmp_path: Path
) -> None:
    state = tmp_path / "nodes" / "state"

    def lose() -> None:
        once(lambda: [folder for folder in state.glob("checkpoints/*") if latest_step(folder)], 300)
        (name,) = cluster.jobs
        cluster.lose_node(name, 1)

    thread = threading.Thread(target=lose)
    thread.start()
    nodes = launcher(cluster, state, num_processes=2)
    on_nodes = train(tmp_path / "nodes", store, nodes, num_nodes=2, num_processes=2)
    thread.join()
    assert cluster.restarts == 1
    here = train(tmp_path / "here", store, None, num_processes=4, parallel="data")
    for file in ("sae/sae.safetensors", "curves.csv", "density.csv", "metrics.json"):
        assert (on_nodes / file).read_bytes() == (here / file).read_bytes(), file


@pytest.mark.long
def test_what_a_rank_finds_wrong_is_the_error_of_the_task(cluster: Cluster, tmp_path: Path) -> None:
    data = SCALE * activations(1000)
    data[700, 3] = float("nan")
    store = make_store(tmp_path / "store", data, SCALE * activations(500, seed=1))
    root = tmp_path / "nodes"
    with pytest.raises(DataError, match="hold NaN or infinity"):
        train(root, store, launcher(cluster, root / "state"), num_nodes=2, tokens=2048)
    assert cluster.jobs == {}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open() as handle:
        return list(csv.DictReader(handle))


def test_without_a_cluster_one_node_is_all_there_is(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_nodes = 2") as raised:
        train(tmp_path, store, None, num_nodes=2)
    assert "plmsae submit" in str(raised.value.fix)


def test_a_pipeline_compiled_for_other_numbers_is_refused(cluster: Cluster, store: Path, tmp_path: Path) -> None:
    for num_nodes in (1, 2):
        with pytest.raises(UserError, match="compiled for 3 nodes"):
            train(tmp_path, store, launcher(cluster, tmp_path / "state", num_nodes=3), num_nodes=num_nodes)
    assert cluster.created == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "the nodes have no GPU"),
        ({"batch_size": 255}, "255 rows cannot be divided among 2 processes"),
        ({"parallel": "independent"}, "on several nodes every batch is divided"),
    ],
)
def test_what_the_nodes_could_not_do_is_refused_before_they_are_asked_for(
    cluster: Cluster, store: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, store, launcher(cluster, tmp_path / "state"), num_nodes=2, **changes)
    assert cluster.requests == []


def test_a_task_of_a_pipeline_has_the_launcher_that_it_was_compiled_with(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLMSAE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv(TRAIN_JOB_VARIABLE, canonical_json(settings(num_nodes=3, state_folder=str(tmp_path / "state"))))
    monkeypatch.setenv(NAMESPACE_VARIABLE, "team")
    values = task_values(activations_sha256=manifest_sha256(store))
    text = executor_input(tmp_path / "task", values, {"activations": store})
    assert cli.main(["run", "train_sae", "--executor-input", text]) == 2
    assert "compiled for 3 nodes with 4 processes each, and the run asks for 1 with 1" in capsys.readouterr().err
