"""The launcher of a task: what it reads from its surroundings, and what it puts where the nodes can see it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plmsae.cluster.launch import NAMESPACE_VARIABLE, TRAIN_JOB_VARIABLE, TrainJobLauncher
from plmsae.errors import UserError
from plmsae.params import canonical_json
from tests.cluster.test_train_job import settings


def test_a_task_finds_its_settings_and_others_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRAIN_JOB_VARIABLE, raising=False)
    assert TrainJobLauncher.from_environment() is None
    given = settings()
    monkeypatch.setenv(TRAIN_JOB_VARIABLE, canonical_json(given))
    monkeypatch.delenv(NAMESPACE_VARIABLE, raising=False)
    with pytest.raises(UserError, match="namespace of the task"):
        TrainJobLauncher.from_environment()
    monkeypatch.setenv(NAMESPACE_VARIABLE, "team")
    assert TrainJobLauncher.from_environment() == TrainJobLauncher(given, "team")


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"num_nodes": 2.5}'])
def test_settings_of_another_version_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRAIN_JOB_VARIABLE, text)
    monkeypatch.setenv(NAMESPACE_VARIABLE, "team")
    with pytest.raises(UserError, match="does not describe a TrainJob") as raised:
        TrainJobLauncher.from_environment()
    assert "compile the pipeline again" in str(raised.value.fix)


def test_a_run_of_another_size_than_the_pipeline_is_refused() -> None:
    launcher = TrainJobLauncher(settings(num_nodes=2, num_processes=8), "team")
    launcher.check(2, 8)
    with pytest.raises(UserError, match="compiled for 2 nodes with 8 processes each, and the run asks for 2 with 4"):
        launcher.check(2, 4)


def test_what_the_nodes_cannot_see_is_copied_to_the_state_volume(tmp_path: Path) -> None:
    state, own = tmp_path / "state", tmp_path / "task" / "activations"
    (own / "inner").mkdir(parents=True)
    (own / "inner" / "file").write_text("rows")
    launcher = TrainJobLauncher(settings(state_folder=str(state)), "team")
    copy = launcher.shared(own, state / "run")
    assert copy == state / "run" / "activations"
    assert (copy / "inner" / "file").read_text() == "rows"
    assert [path.name for path in copy.parent.iterdir()] == ["activations"]
    shutil.rmtree(own)  # the task of a retry has it again, or not yet: the copy is taken
    assert launcher.shared(own, state / "run") == copy
    assert launcher.shared(copy / "inner", state / "elsewhere") == copy / "inner"
    (own.parent / "table").write_text("a")
    assert launcher.shared(own.parent / "table", state / "run").read_text() == "a"


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    state, own = tmp_path / "state", tmp_path / "activations"
    own.mkdir()
    (own / "file").write_text("rows")
    (state / ".activations").mkdir(parents=True)
    (state / ".activations" / "other").touch()
    copy = TrainJobLauncher(settings(state_folder=str(state)), "team").shared(own, state)
    assert [path.name for path in copy.iterdir()] == ["file"]


def test_a_job_beside_the_state_volume_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    launcher = TrainJobLauncher(settings(state_folder=str(tmp_path / "state")), "team")
    with pytest.raises(UserError, match="not on the state volume") as raised:
        launcher.run(
            "module",
            tmp_path / "job.json",
            key="ab",
            forget=lambda: None,
            failure=lambda: None,
            finished=lambda: False,
        )
    assert "--state-claim" in str(raised.value.fix)
