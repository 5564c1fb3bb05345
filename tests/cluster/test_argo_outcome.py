"""How a run on Argo ended, from what Argo tells the exit task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plmsae.cluster.argo_outcome import failed_tasks, main, outcome
from plmsae.registry.reevaluation import note_run
from plmsae.registry.register import register
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import write_outputs
from tests.registry.test_webhook import Hook, hook

__all__ = ["empty_registry", "hook", "root"]  # fixtures
RUN = "plmsae-train-x7k2p"
# A task that may be repeated is a node of its own above its attempts; every one that failed is listed, and the graph.
NODES = [
    {"displayName": RUN, "message": "child failed", "templateName": "main", "phase": "Failed"},
    {"displayName": "train-sae", "message": "No more retries left", "templateName": "train-sae", "phase": "Failed"},
    {"displayName": "train-sae(0)", "message": "Error (exit code 75)", "templateName": "train-sae", "phase": "Failed"},
    {"displayName": "train-sae(1)", "message": "Error (exit code 75)", "templateName": "train-sae", "phase": "Failed"},
    {"displayName": "ingest(0)", "message": "pod deleted", "templateName": "ingest", "phase": "Error"},
]


def quoted(nodes: object) -> str:
    """As Argo fills it in: JSON, as a text of Go."""
    return json.dumps(json.dumps(nodes))


@pytest.mark.parametrize("text", [quoted(NODES), json.dumps(NODES)])
def test_the_tasks_that_failed_are_named_and_not_their_attempts(text: str) -> None:
    assert failed_tasks(text, RUN) == {"train-sae": "No more retries left"}


def test_a_message_with_escapes_of_go_is_read() -> None:
    text = r'"[{\"displayName\":\"ingest\",\"message\":\"no\x7f\u00e9\\n\"}]"'
    assert failed_tasks(text, RUN) == {"ingest": "no\x7fé\n"}


@pytest.mark.parametrize(
    "text", ["", "null", '"null"', "{{workflow.failures}}", '"[', "[3]", '[{"x": 1}]', '"\\', "[]"]
)
def test_what_cannot_be_read_names_no_task(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--run={RUN}", "--status=Error", f"--failures={text}"]) == 0
    printed = capsys.readouterr()
    assert "names no task that failed" in printed.out
    assert json.loads(printed.err)["state"] == "ERROR"


def test_the_line_for_collectors_is_that_of_kubeflow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--run={RUN}", "--status=Failed", f"--failures={quoted(NODES)}"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.err) == {
        "event": "pipeline finished",
        "state": "FAILED",
        "run": RUN,
        "task": "train-sae",
        "error": "train-sae: No more retries left",
    }
    assert f"argo retry {RUN}" in printed.out


def test_a_run_that_succeeded_names_nothing() -> None:
    """Not even an attempt that failed before another saved the task."""
    nodes = quoted([{"displayName": "ingest", "message": "x"}])
    assert outcome(RUN, "Succeeded", nodes) == {"state": "SUCCEEDED", "run": RUN, "task": "", "error": ""}
    assert outcome(RUN, "", "")["state"] == "UNKNOWN"


def test_a_failed_re_evaluation_is_told_and_the_end_by_drift_is_not(
    root: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a drift, the task `verdict` of the same run has told it, which knows more."""
    monkeypatch.setenv("PLMSAE_WEBHOOK", hook.url)
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    version = register(write_outputs(root), root)
    uri = f"models:/{version.name}/{version.version}"

    def told(status: str, *options: str) -> list[dict[str, object]]:
        hook.received.clear()
        assert main([f"--run={RUN}", f"--status={status}", f"--failures={quoted(NODES)}", *options]) == 0
        return [json.loads(body) for _, _, body in hook.received]

    (message,) = told("Failed", f"--reevaluated={uri}")
    assert (message["event"], message["model"], message["state"], message["run"]) == ("failed", uri, "FAILED", RUN)
    assert told("Succeeded", f"--reevaluated={uri}") == []
    assert told("Failed") == []
    note_run(version.name, version.version, root)
    assert told("Failed", f"--reevaluated={uri}") == []
