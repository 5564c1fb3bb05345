"""Stage runs in MLflow: what is logged, once, and into which run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from plmsae.errors import DataError
from plmsae.registry import tracking
from plmsae.registry.connection import connect, experiment_id
from plmsae.registry.tracking import flatten, log_stage_run
from plmsae.stages.spec import ChildRun
from tests.registry.outputs import PNG


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "curves.png").write_bytes(PNG)
    (folder / "curves.csv").write_text("step,loss,fvu\n0,9.5,\n10,3.25,0.3\n20,3,nan\n")
    (folder / "summary.md").write_text("All went well.\n")
    return folder


def log(root: Path, output: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "stage_id": "train_sae",
        "params": {"k": 8, "options": {"aux_k": None}, "name": "a"},
        "metrics": {"fvu": 0.3, "num_steps": 20},
        "tags": {"manifest_sha256": "abc"},
    }
    return log_stage_run(output=output, root=root, **{**arguments, **changes})


def test_a_run_holds_parameters_metrics_curves_and_figures(root: Path, output: Path) -> None:
    run_id = log(root, output)
    with connect(root) as client:
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "train_sae"
        assert run.data.params == {"k": "8", "options.aux_k": "null", "name": "a"}
        assert run.data.metrics["fvu"] == 0.3
        assert [(m.step, m.value) for m in client.get_metric_history(run_id, "curve.loss")] == [
            (0, 9.5),
            (10, 3.25),
            (20, 3.0),
        ]
        assert [(m.step, m.value) for m in client.get_metric_history(run_id, "curve.fvu")] == [(10, 0.3)]
        assert run.data.tags["mlflow.note.content"] == "All went well.\n"
        assert [item.path for item in client.list_artifacts(run_id, "figures")] == ["figures/curves.png"]


def test_the_same_output_is_logged_once(root: Path, output: Path) -> None:
    first = log(root, output)
    assert log(root, output) == first
    assert log(root, output, tags={"manifest_sha256": "other"}) != first
    assert log(root, output, stage_id="evaluate@fidelity") != first


def test_a_run_that_was_cut_off_is_replaced(root: Path, output: Path) -> None:
    with connect(root) as client:
        tags = {"manifest_sha256": "abc", "stage": "train_sae"}
        stale = client.create_run(experiment_id(client, root), run_name="train_sae", tags=tags).info.run_id
    assert log(root, output) != stale
    with connect(root) as client:
        assert client.get_run(stale).info.lifecycle_stage == "deleted"


def test_an_existing_run_is_joined_and_left_open(root: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(root) as client:
        given = client.create_run(experiment_id(client, root), run_name="from Kubeflow").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    assert log(root, output) == given
    with connect(root) as client:
        run = client.get_run(given)
    assert run.data.metrics["fvu"] == 0.3
    assert run.info.status == "RUNNING"


@pytest.fixture
def members(output: Path) -> dict[str, ChildRun]:
    for name in ("k8", "k16"):
        shutil.copytree(output / "figures", output / "members" / name / "figures")
        shutil.copy(output / "curves.csv", output / "members" / name)
        (output / "members" / name / "summary.md").write_text(f"About {name}.\n")
    return {
        "k8": ChildRun({"k": 8}, {"fvu": 0.4}, "members/k8"),
        "k16": ChildRun({"k": 16}, {"fvu": 0.3}, "members/k16"),
        "k32": ChildRun({"k": 32}, {}, None, failed="the training diverged"),
    }


def children_of(root: Path, parent: str) -> dict[str, Any]:
    with connect(root) as client:
        experiment = experiment_id(client, root)
        found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run for run in found}


def test_a_sweep_s_members_are_runs_below_its_own(root: Path, output: Path, members: dict[str, ChildRun]) -> None:
    parent = log(root, output, stage_id="sweep", children=members)
    runs = children_of(root, parent)
    assert set(runs) == {"k8", "k16", "k32"}
    assert runs["k16"].data.params == {"k": "16"}
    assert runs["k16"].data.metrics == {"fvu": 0.3, "curve.loss": 3.0, "curve.fvu": 0.3}
    assert runs["k16"].data.tags["mlflow.note.content"] == "About k16.\n"
    assert runs["k16"].data.tags["member"] == "k16"
    assert {name: run.info.status for name, run in runs.items()} == {
        "k8": "FINISHED",
        "k16": "FINISHED",
        "k32": "FAILED",
    }
    assert runs["k32"].data.tags["mlflow.note.content"] == "the training diverged"
    with connect(root) as client:
        history = client.get_metric_history(runs["k8"].info.run_id, "curve.loss")
        assert [(point.step, point.value) for point in history] == [(0, 9.5), (10, 3.25), (20, 3.0)]
        files = [item.path for item in client.list_artifacts(runs["k8"].info.run_id, "figures")]
        assert files == ["figures/curves.png"]
        assert client.get_run(parent).info.status == "FINISHED"
    assert log(root, output, stage_id="sweep", children=members) == parent
    assert len(children_of(root, parent)) == 3


def test_a_sweep_that_was_cut_off_while_logging_is_replaced_with_its_members(
    root: Path, output: Path, members: dict[str, ChildRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def cut_off(client: Any, run_id: str, run: Any) -> None:
        begun.append(run_id)
        if len(begun) == 3:
            raise KeyboardInterrupt
        log_one(client, run_id, run)

    log_one = tracking._log
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "_log", cut_off)
        with pytest.raises(KeyboardInterrupt):
            log(root, output, stage_id="sweep", children=members)
    assert len(children_of(root, begun[0])) == 2
    parent = log(root, output, stage_id="sweep", children=members)
    assert parent != begun[0]
    assert children_of(root, begun[0]) == {}
    assert set(children_of(root, parent)) == set(members)


def test_members_join_a_run_that_is_there_once(
    root: Path, output: Path, members: dict[str, ChildRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(root) as client:
        given = client.create_run(experiment_id(client, root), run_name="from Kubeflow").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    for _ in range(2):
        assert log(root, output, stage_id="sweep", children=members) == given
        assert len(children_of(root, given)) == 3
    log(root, output, stage_id="sweep", children=members, tags={"manifest_sha256": "of another sweep in this run"})
    with connect(root) as client:
        experiment = experiment_id(client, root)
        assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{given}'")) == 6


def test_more_metrics_than_one_request_takes(root: Path, output: Path) -> None:
    rows = "".join(f"{step},{step / 2}\n" for step in range(2300))
    (output / "curves.csv").write_text("step,loss\n" + rows)
    run_id = log(root, output)
    with connect(root) as client:
        assert len(client.get_metric_history(run_id, "curve.loss")) == 2300


def test_a_curve_that_is_no_table_of_numbers_names_the_line(root: Path, output: Path) -> None:
    (output / "curves.csv").write_text("step,loss\n0,1\n1,high\n")
    with pytest.raises(DataError) as caught:
        log(root, output)
    assert "curves.csv, line 3" in str(caught.value)


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": {}}) == {"a.b.c": 1, "a.d": [1], "e": {}}
