"""Rollback: the champion before is champion again, a second one undoes it, and no kill leaves the name without one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient

import plmsae
from plmsae.cli import main
from plmsae.errors import DataError, UserError
from plmsae.registry.connection import connect
from plmsae.registry.promote import promote
from plmsae.registry.rollback import rollback
from plmsae.registry.versions import aliases_of, get_version
from tests.registry.test_promote import GATES, NAME, Cut, add, aliases


@pytest.fixture(scope="module")
def once(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which version 1 was champion and version 2 is; nobody changes it."""
    folder = tmp_path_factory.mktemp("once")
    shutil.copytree(empty_registry, folder / ".plmsae")
    promote(NAME, add(folder), GATES, folder)
    promote(NAME, add(folder, fvu=0.25, seed=1), GATES, folder)
    return folder


@pytest.fixture
def promoted_twice(root: Path, once: Path) -> Path:
    """Version 1 was champion, version 2 is."""
    shutil.copytree(once, root, dirs_exist_ok=True)
    assert aliases(root) == {"candidate": 2, "champion": 2, "previous": 1}
    return root


def history(root: Path) -> dict[str, dict[str, object]]:
    with connect(root) as client:
        tags = client.get_registered_model(NAME).tags
    return {key: json.loads(text) for key, text in sorted(tags.items()) if key.startswith("rollback.")}


def test_the_two_change_places_and_back(promoted_twice: Path) -> None:
    first = plmsae.load(f"models:/{NAME}@champion").config.training["seed"]
    done = rollback(NAME, "steering breaks on membrane proteins", promoted_twice)
    assert (done.from_version, done.to_version, done.done) == (2, 1, True)
    assert aliases(promoted_twice) == {"candidate": 2, "champion": 1, "previous": 2}
    assert (first, plmsae.load(f"models:/{NAME}@champion").config.training["seed"]) == (1, 0)
    undone = rollback(NAME, "", promoted_twice)
    assert (undone.from_version, undone.to_version) == (1, 2)
    assert aliases(promoted_twice) == {"candidate": 2, "champion": 2, "previous": 1}


def test_what_from_to_when_and_why_stay_on_record(promoted_twice: Path) -> None:
    def taken_down(version: int) -> str | None:
        with connect(promoted_twice) as client:
            return get_version(client, NAME, version).tags.get("rollback")

    first = rollback(NAME, "a reason with ünïcode and 'quotes'", promoted_twice)
    assert (json.loads(taken_down(2) or ""), taken_down(1)) == (first.record(), None)
    second = rollback(NAME, root=promoted_twice)
    assert (taken_down(2), json.loads(taken_down(1) or "")) == (None, second.record())
    assert history(promoted_twice) == {"rollback.1": first.record(), "rollback.2": second.record()}
    assert first.reason == "a reason with ünïcode and 'quotes'"
    assert datetime.fromisoformat(first.at).utcoffset() is not None


def test_the_tenth_rollback_comes_after_the_ninth(promoted_twice: Path) -> None:
    for _ in range(11):
        rollback(NAME, root=promoted_twice)
    assert len(history(promoted_twice)) == 11
    assert aliases(promoted_twice)["champion"] == 1


def test_a_pipeline_does_not_undo_a_rollback_but_a_person_may(
    promoted_twice: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = rollback(NAME, "breaks on membrane proteins", promoted_twice)
    before = aliases(promoted_twice)
    decision = promote(NAME, 2, GATES, promoted_twice)
    assert not decision.promoted
    assert decision.reasons == (
        f"it was rolled back at {done.at}: breaks on membrane proteins "
        f"(to make it champion again: plmsae promote {NAME} 2)",
    )
    assert aliases(promoted_twice) == before
    assert main(["promote", NAME, "2"]) == 0
    assert "is champion" in capsys.readouterr().out
    assert aliases(promoted_twice) == {"candidate": 2, "champion": 2, "previous": 1}
    assert_nothing_is_taken_down(promoted_twice)


def test_a_rollback_that_was_undone_bars_the_other_version(promoted_twice: Path) -> None:
    rollback(NAME, root=promoted_twice)
    rollback(NAME, root=promoted_twice)
    third = add(promoted_twice, fvu=0.24, seed=2)
    assert promote(NAME, third, GATES, promoted_twice).promoted
    assert promote(NAME, 2, GATES, promoted_twice).promoted
    assert not promote(NAME, 1, GATES, promoted_twice).promoted


def test_a_promotion_of_what_was_taken_down_can_be_cut_off(
    promoted_twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollback(NAME, root=promoted_twice)
    for method in ("delete_model_version_tag", "set_registered_model_alias"):
        whole = getattr(MlflowClient, method)

        def cut(*args: object, whole: Callable[..., None] = whole) -> None:
            whole(*args)
            raise Cut

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, method, cut)
            with pytest.raises(Cut):
                promote(NAME, 2, GATES, promoted_twice, again=True)
    assert promote(NAME, 2, GATES, promoted_twice, again=True).promoted
    assert aliases(promoted_twice) == {"candidate": 2, "champion": 2, "previous": 1}
    assert_nothing_is_taken_down(promoted_twice)


def assert_nothing_is_taken_down(root: Path) -> None:
    with connect(root) as client:
        assert "rollback" not in get_version(client, NAME, 2).tags


STEPS = (
    "set_registered_model_tag",
    "set_registered_model_alias",
    "set_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_rollback_cut_off_at_any_step_is_finished_by_the_next(
    promoted_twice: Path, step: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def cutting(method: str) -> object:
        whole = getattr(MlflowClient, method)

        def call(*args: object, **kwargs: object) -> None:
            nonlocal count
            if str(args[2]).startswith("claim."):  # tests/registry/test_claim.py
                return whole(*args, **kwargs)
            number, count = count, count + 1
            assert method == STEPS[number]
            if number == step and when == "before":
                raise Cut
            whole(*args, **kwargs)
            if number == step:
                raise Cut
            return None

        return call

    with monkeypatch.context() as patch:
        for method in set(STEPS):
            patch.setattr(MlflowClient, method, cutting(method))
        with pytest.raises(Cut):
            rollback(NAME, "why", promoted_twice)
    assert aliases(promoted_twice)["champion"] in (1, 2)
    complete = (step, when) == (len(STEPS) - 1, "after")
    done = rollback(NAME, "why", promoted_twice)
    # A rollback that had written its last record was whole: the one after it is the second, which undoes it.
    assert (done.from_version, done.to_version) == ((1, 2) if complete else (2, 1))
    expected = {"champion": 2, "previous": 1} if complete else {"champion": 1, "previous": 2}
    assert aliases(promoted_twice) == {"candidate": 2, **expected}
    assert [record["done"] for record in history(promoted_twice).values()][-1] is True


_KILLED = """
import os, signal
from pathlib import Path
from mlflow import MlflowClient
whole = MlflowClient.set_registered_model_alias
def killed(*arguments):
    whole(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
MlflowClient.set_registered_model_alias = killed
from plmsae.registry.rollback import rollback
rollback({name!r}, "why", Path({root!r}))
"""


def test_a_rollback_that_is_killed_leaves_a_champion_and_is_finished_by_the_next(promoted_twice: Path) -> None:
    script = _KILLED.format(name=NAME, root=str(promoted_twice))
    done = subprocess.run([sys.executable, "-c", script], cwd=promoted_twice, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert aliases(promoted_twice) == {"candidate": 2, "champion": 1, "previous": 1}
    assert rollback(NAME, root=promoted_twice).reason == "why"
    assert aliases(promoted_twice) == {"candidate": 2, "champion": 1, "previous": 2}


def test_a_rollback_that_was_cut_off_long_ago_is_not_finished_after_a_promotion(
    promoted_twice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MlflowClient.set_registered_model_alias

    def cut(*args: object) -> None:
        whole(*args)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", cut)
        with pytest.raises(Cut):
            rollback(NAME, "forgotten", promoted_twice)
    third = add(promoted_twice, fvu=0.2, seed=2)
    promote(NAME, third, GATES, promoted_twice)
    done = rollback(NAME, "today", promoted_twice)
    assert (done.from_version, done.to_version, done.reason) == (3, 1, "today")
    assert [record["done"] for record in history(promoted_twice).values()] == [False, True]


def test_nothing_to_go_back_to_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no SAE is registered"):
        rollback(NAME, root=root)
    first = add(root)
    with pytest.raises(UserError, match="has no champion to roll back from"):
        rollback(NAME, root=root)
    with pytest.raises(UserError, match=f"did you mean '{NAME}'"):
        rollback(NAME + "k", root=root)
    promote(NAME, first, GATES, root)
    with pytest.raises(UserError, match="version 1 is its first"):
        rollback(NAME, root=root)
    whole = MlflowClient.set_registered_model_alias

    def cut(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise Cut
        whole(client, name, alias, version)

    better = add(root, fvu=0.25, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", cut)
        with pytest.raises(Cut):
            promote(NAME, better, GATES, root)
    with pytest.raises(UserError, match="a promotion that would have replaced version 1 was cut off"):
        rollback(NAME, root=root)
    assert aliases(root)["champion"] == 1
    assert history(root) == {}


def test_a_deleted_previous_is_no_way_back(promoted_twice: Path) -> None:
    with connect(promoted_twice) as client:
        client.delete_model_version(NAME, "1")
        assert aliases_of(client, NAME) == {"candidate": 2, "champion": 2}
    with pytest.raises(UserError, match="no previous champion"):
        rollback(NAME, root=promoted_twice)


def test_a_record_that_somebody_edited_is_named(promoted_twice: Path) -> None:
    with connect(promoted_twice) as client:
        client.set_registered_model_tag(NAME, "rollback.1", "yes")
    with pytest.raises(DataError, match=r"'rollback\.1'"):
        rollback(NAME, root=promoted_twice)
    assert aliases(promoted_twice)["champion"] == 2


@pytest.mark.parametrize("reason", ["x" * 4000, "\U0001f9ec" * 350, "not \udc80 UTF-8"])
def test_a_long_or_strange_reason_is_recorded_as_it_is(promoted_twice: Path, reason: str) -> None:
    rollback(NAME, reason, promoted_twice)
    assert history(promoted_twice)["rollback.1"]["reason"] == reason


@pytest.mark.parametrize("reason", ["x" * 5000, "\U0001f9ec" * 450])
def test_a_reason_that_the_registry_cannot_hold_is_refused(promoted_twice: Path, reason: str) -> None:
    with pytest.raises(UserError, match="the reason is too long"):
        rollback(NAME, reason, promoted_twice)
    assert aliases(promoted_twice)["champion"] == 2
    assert history(promoted_twice) == {}


def test_the_verb(promoted_twice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", NAME, "--reason", "worse on antibodies", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["from_version"], record["to_version"]) == (NAME, 2, 1)
    assert record["reason"] == "worse on antibodies"
    assert main(["rollback", NAME]) == 0
    assert f"models:/{NAME}/2 is champion again, instead of version 1" in capsys.readouterr().out
    assert main(["rollback", NAME + "k", "--json"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert json.loads(captured.out)["fix"] == f"did you mean '{NAME}'?"
