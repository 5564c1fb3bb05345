"""Re-evaluations on record: numbers, verdicts over time, promotion of what drifted, and a kill half-way."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plmsae.errors import DataError
from plmsae.registry import reevaluation
from plmsae.registry.basis import Basis
from plmsae.registry.connection import connect
from plmsae.registry.drift import Drift
from plmsae.registry.gates import Gates
from plmsae.registry.promote import promote
from plmsae.registry.reevaluation import (
    Measured,
    announce,
    download_report,
    drifts,
    note_run,
    notified,
    open_version,
    verdict,
    write,
)
from plmsae.registry.register import register
from plmsae.registry.versions import aliases_of, get_version
from plmsae.stages import final_status
from tests.registry.outputs import FIDELITY, write_outputs
from tests.registry.test_webhook import Hook, hook
from tests.stages.test_executor_input import executor_input

__all__ = ["hook"]  # fixture
NAME = "plmsae.esm_small.layer3.topk"
URI = f"models:/{NAME}@candidate"
BASIS = Basis({"ingest.source": "a" * 64}, "esm_small@1", "b" * 64, {"ingest": "c"}, {"ingest.seed": 0})


def measured(fvu: float, cause: str = "data", metric: str = "fidelity.fvu") -> Measured:
    difference = fvu - FIDELITY["fvu"]
    drift = Drift(
        metric,
        "less",
        FIDELITY["fvu"],
        fvu,
        difference,
        difference - 0.01,
        difference + 0.01,
        0.02,
        40,
        "proteins",
        "",
        drifted=difference > 0.02,
    )
    return Measured(BASIS, {cause: ["it changed"]}, {"fvu": fvu}, (drift,))


@pytest.fixture(scope="module")
def registered(empty_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with one version."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copytree(empty_registry, folder / ".plmsae")
    register(write_outputs(folder), folder)
    return folder / ".plmsae"


@pytest.fixture
def version(root: Path, registered: Path) -> reevaluation.Version:
    shutil.copytree(registered, root / ".plmsae", dirs_exist_ok=True)
    return open_version(URI, root)


def test_a_history_keeps_every_number_and_the_newest_counts(
    root: Path, version: reevaluation.Version, tmp_path: Path
) -> None:
    values = [0.31, 0.4, 0.30]
    records: list[dict[str, Any]] = []
    for value in values:
        records.append(write(version, {"fidelity": measured(value)}, {"data_release": f"{value}"}, root))
        assert verdict(drifts(open_version(URI, root).records.values())) == records[-1]["verdict"]
    assert [record["number"] for record in records] == [1, 2, 3]
    assert [record["verdict"] for record in records] == ["fine", "drifted", "fine"]
    again = open_version(URI, root)
    assert again.records == dict(enumerate(records, start=1))
    assert again.registered.metrics["reevaluation.fidelity.fvu"] == 0.30
    assert again.registered.metrics["fidelity.fvu"] == FIDELITY["fvu"]
    assert again.basis("fidelity") == BASIS
    assert again.basis("concepts") is None
    download_report(NAME, 1, 3, tmp_path / "seen", root)
    with (tmp_path / "seen" / "history.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [(int(row["number"]), float(row["now"])) for row in rows] == list(enumerate(values, start=1))
    assert [row["data_release"] for row in rows][1] == "0.4"
    page = (tmp_path / "seen" / "report.html").read_text(encoding="utf-8")
    assert "it changed" in page
    assert "<script" not in page
    # The eleventh comes after the ninth, not after the first.
    tags = {
        f"reevaluation.{number}": json.dumps({**records[0], "number": number, "verdict": str(number)})
        for number in (11, 1, 9)
    }
    assert list(reevaluation.records(replace(again.registered, tags=tags))) == [1, 9, 11]


def test_an_evaluation_that_was_not_repeated_keeps_its_verdict(root: Path, version: reevaluation.Version) -> None:
    assert write(version, {"fidelity": measured(0.5)}, {}, root)["verdict"] == "drifted"
    concepts = measured(0.31, metric="concepts.mean_f1_sae")
    record = write(version, {"concepts": concepts}, {}, root)
    assert record["verdict"] == "drifted"
    found = open_version(URI, root)
    assert [(each.metric, each.drifted) for each in drifts(found.records.values())] == [
        ("concepts.mean_f1_sae", False),
        ("fidelity.fvu", True),
    ]
    assert found.registered.tags["drift"] == "true"


def test_what_drifted_is_not_promoted_until_it_is_fine_again(root: Path, version: reevaluation.Version) -> None:
    write(version, {"fidelity": measured(0.5)}, {}, root)
    refused = promote(NAME, 1, Gates(), root, again=True)
    assert not refused.promoted
    assert refused.reasons == (
        "its last re-evaluation found that it has drifted (its tags 'reevaluation.<number>' say how)",
    )
    write(version, {"fidelity": measured(0.31)}, {}, root)
    assert promote(NAME, 1, Gates(), root).promoted
    # Of a champion that drifts later, the alias stays where it is.
    write(version, {"fidelity": measured(0.5)}, {}, root)
    with connect(root) as client:
        assert aliases_of(client, NAME) == {"candidate": 1, "champion": 1}
    assert promote(NAME, 1, Gates(), root).promoted  # it is champion by these gates already
    # Another version is still compared with it.
    other = register(write_outputs(root, seed=1, fidelity={**FIDELITY, "fvu": 0.25}), root)
    assert promote(NAME, other.version, Gates(), root).compared_with == 1


def test_a_kill_before_the_record_leaves_none(
    root: Path, version: reevaluation.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(root) as client:
        kind = type(client)
    whole = kind.set_model_version_tag

    def cut(self: Any, name: str, number: str, key: str, value: str) -> None:
        if key.startswith("reevaluation."):
            raise KeyboardInterrupt
        whole(self, name, number, key, value)

    monkeypatch.setattr(kind, "set_model_version_tag", cut)
    with pytest.raises(KeyboardInterrupt):
        write(version, {"fidelity": measured(0.5)}, {}, root)
    monkeypatch.undo()
    monkeypatch.chdir(root)
    assert open_version(URI, root).records == {}
    record = write(version, {"fidelity": measured(0.31)}, {}, root)
    assert record["number"] == 1
    found = open_version(URI, root)
    assert found.registered.tags["drift"] == "false"
    with connect(root) as client:
        tags = client.get_registered_model(NAME).tags
        assert not [tag for tag in tags if tag.startswith("claim.")]
        notified(NAME, 1, 1, root)
        assert get_version(client, NAME, 1).tags["reevaluation_notified"] == "1"


def test_an_edited_record_is_a_data_error(root: Path, version: reevaluation.Version) -> None:
    record = write(version, {"fidelity": measured(0.31)}, {}, root)
    changes: list[dict[str, Any]] = [
        {"evaluations": []},
        {"number": 2},
        {"facts": None},
        {"evaluations": {"fidelity": {"basis": {}}}},
    ]
    for change in changes:
        with connect(root) as client:
            client.set_model_version_tag(NAME, "1", "reevaluation.1", json.dumps({**record, **change}))
        with pytest.raises(DataError, match=r"'reevaluation\.1'"):
            open_version(URI, root)
    broken = replace(version, records={1: {**record, "evaluations": {"fidelity": {"basis": {}, "drift": [{"x": 1}]}}}})
    with pytest.raises(DataError, match="damaged"):
        drifts(broken.records.values())
    with pytest.raises(DataError, match="damaged"):
        broken.basis("fidelity")


def test_the_webhook_is_told_once_of_each_drift_and_a_wrong_address_hides_none(
    root: Path, version: reevaluation.Version, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(version, {"fidelity": measured(0.5)}, {}, root)
    for address in ("", "file:///etc/passwd"):
        monkeypatch.setenv("PLMSAE_WEBHOOK", address)
        announce(open_version(URI, root), root)
    hook.status = 500
    monkeypatch.setenv("PLMSAE_WEBHOOK", hook.url)
    announce(open_version(URI, root), root)
    hook.status = 200
    for _ in range(2):
        announce(open_version(URI, root), root)
    first, second = (json.loads(body) for _, _, body in hook.received)
    assert first == second
    assert (second["event"], second["number"], second["causes"]) == ("drifted", 1, {"fidelity": ["data"]})


@pytest.mark.parametrize(
    ("state", "own_run", "told"),
    [("FAILED", "run-1", []), ("FAILED", "run-2", ["failed"]), ("CANCELLED", "run-2", []), ("SUCCEEDED", "run-2", [])],
)
def test_the_exit_task_tells_of_failures_and_leaves_drift_to_the_verdict(
    root: Path,
    version: reevaluation.Version,
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    state: str,
    own_run: str,
    told: list[str],
) -> None:
    """Run `run-1` ended because the version has drifted."""
    monkeypatch.setenv("PLMSAE_WEBHOOK", hook.url)
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    note_run(NAME, 1, root)
    monkeypatch.setenv("KFP_RUN_ID", own_run)
    values = {"reevaluated": URI, "status": {"state": state, "error": {"message": "secret place"}}}
    task = json.loads(executor_input(tmp_path / "task", values, {}))
    task["outputs"]["artifacts"] = {name: task["outputs"]["artifacts"][name] for name in ("summary",)}
    task["outputs"]["parameters"] = {}
    assert final_status.main(["--executor-input", json.dumps(task)]) == 0
    messages = [json.loads(body) for _, _, body in hook.received]
    assert [message["event"] for message in messages] == told
    assert "secret" not in json.dumps(messages)


def test_without_a_registry_to_ask_a_failure_is_told(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLMSAE_WEBHOOK", hook.url)
    monkeypatch.setenv("KFP_RUN_ID", "run-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    final_status.tell(URI, {"state": "FAILED", "run": ""})
    ((_, _, body),) = hook.received
    message = json.loads(body)
    assert (message["model"], message["state"], message["run"]) == (URI, "FAILED", "run-1")
