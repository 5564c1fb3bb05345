"""Deletion: the champion and the way back stay, the rest goes with a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from plmsae.cli import main
from plmsae.errors import UserError
from plmsae.registry.connection import connect
from plmsae.registry.delete import delete
from plmsae.registry.promote import promote
from plmsae.registry.versions import list_versions
from tests.registry.test_promote import GATES, NAME, Cut, add, aliases


@pytest.fixture
def three(root: Path) -> Path:
    """Version 1 was champion, version 2 is, version 3 is the candidate."""
    promote(NAME, add(root), GATES, root)
    promote(NAME, add(root, fvu=0.25, seed=1), GATES, root)
    add(root, fvu=0.4, seed=2)
    assert aliases(root) == {"candidate": 3, "champion": 2, "previous": 1}
    return root


def versions(root: Path) -> list[int]:
    with connect(root) as client:
        return [item.version for item in list_versions(client)]


def deletions(root: Path) -> list[dict[str, Any]]:
    with connect(root) as client:
        tags = client.get_registered_model(NAME).tags
    return [json.loads(text) for key, text in sorted(tags.items()) if key.startswith("deletion.")]


@pytest.mark.parametrize(("version", "alias"), [(2, "champion"), (1, "previous")])
def test_the_champion_and_the_way_back_are_never_deleted(three: Path, version: int, alias: str) -> None:
    with pytest.raises(UserError, match=f"version {version} of '{NAME}' is {alias} and is not deleted"):
        delete(NAME, version, "to save space", three)
    assert versions(three) == [1, 2, 3]
    assert aliases(three) == {"candidate": 3, "champion": 2, "previous": 1}
    assert deletions(three) == []


def test_another_version_goes_with_a_record_and_can_be_registered_again(three: Path) -> None:
    with connect(three) as client:
        before = client.get_model_version(NAME, "3").tags
    done = delete(NAME, 3, "a misprint", three)
    assert versions(three) == [1, 2]
    assert aliases(three) == {"champion": 2, "previous": 1}
    assert deletions(three) == [done.record()]
    assert (done.evidence_sha256, done.sae_sha256) == (before["evidence_sha256"], before["sae_sha256"])
    assert add(three, fvu=0.4, seed=2) == 4
    assert versions(three) == [1, 2, 4]


def test_a_deletion_that_was_cut_off_is_finished_by_the_next(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_model_version", cut)
        with pytest.raises(Cut):
            delete(NAME, 3, "a misprint", three)
    delete(NAME, 3, "a misprint", three)
    assert (versions(three), len(deletions(three))) == ([1, 2], 1)
    with pytest.raises(UserError, match="has no version 3"):
        delete(NAME, 3, "a misprint", three)


def test_the_verb(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", NAME, "--delete", "2", "--json"]) == 2
    assert "is champion" in json.loads(capsys.readouterr().out)["error"]
    assert main(["models", "--delete", "3"]) == 2
    assert "plmsae models NAME --delete 3" in capsys.readouterr().err
    assert main(["models", NAME, "--delete", "3", "--reason", "a misprint", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["version"], record["reason"]) == (3, "a misprint")
    assert versions(three) == [1, 2]
