"""The pipeline `reevaluate`: its graph, and whole runs by KFP's own local runner."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae.cluster.sections import pipeline_arguments
from plmsae.params import ParamsFile
from plmsae.registry.connection import connect
from plmsae.registry.versions import aliases_of, get_version
from plmsae.stages.catalog import stages
from plmsae.stages.reevaluation_params import REPEATED, REPEATS, ReevaluateParams
from tests.commands.test_reevaluate import NAME, noise_on_the_champion, with_settings
from tests.pipeline.conftest import Finished
from tests.pipeline.test_graph import compiled, tasks
from tests.pipeline.test_kubeflow import run_pipeline
from tests.registry.test_webhook import Hook, hook
from tests.workspace import FIXTURE, ROOT, call

__all__ = ["hook"]  # fixture
CHAMPION = f"models:/{NAME}@champion"


def branch(action: str) -> dict[str, Any]:
    """Tasks that run where `changes` found this."""
    specification = compiled("reevaluate")
    (task,) = [
        task
        for task in tasks(specification).values()
        if task.get("triggerPolicy", {}).get("condition")
        == f"inputs.parameter_values['pipelinechannel--changes-action'] == '{action}'"
    ]
    given = task["inputs"]["parameters"]["pipelinechannel--changes-action"]["taskOutputParameter"]
    assert given == {"outputParameterKey": "action", "producerTask": "changes"}
    found: dict[str, Any] = specification["components"][task["componentRef"]["name"]]["dag"]["tasks"]
    return found


def test_only_what_is_stale_is_evaluated_and_what_drifted_is_judged() -> None:
    specification = compiled("reevaluate")
    assert [name for name in tasks(specification) if not name.startswith("condition-")] == ["changes"]
    stale, drifted = branch("evaluate"), branch("drifted")
    assert (set(stale), set(drifted)) == ({"reevaluate", "verdict"}, {"verdict-2"})
    assert stale["verdict"]["dependentTasks"] == ["reevaluate"]
    # The version is found once: an alias that moves meanwhile changes nothing.
    for task in (*stale.values(), *drifted.values()):
        assert task["inputs"]["parameters"]["model"] == {"componentInputParameter": "pipelinechannel--changes-uri"}
        assert not task["cachingOptions"]
    assert not tasks(specification)["changes"]["cachingOptions"]
    form = specification["root"]["inputDefinitions"]["parameters"]
    assert {name: "defaultValue" in item for name, item in form.items()} == {
        "source": False,
        "model": True,
        "reevaluate_params": True,
    }
    exit_task = specification["root"]["dag"]["tasks"]["report-outcome"]["inputs"]["parameters"]
    assert exit_task["reevaluated"] == {"componentInputParameter": "model"}


def test_pods_have_time_limits_and_only_those_that_tell_have_the_webhook() -> None:
    specification, platform = yaml.safe_load_all((ROOT / "pipelines" / "reevaluate.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(specification["deploymentSpec"]["executors"])
    assert all(int(item["activeDeadlineSeconds"]) > 0 for item in executors.values())
    assert all(item["securityContext"]["runAsNonRoot"] for item in executors.values())
    secrets = {
        name: {secret["secretName"] for secret in item["secretAsEnv"] if secret["optional"]}
        for name, item in executors.items()
    }
    assert {name for name, held in secrets.items() if "plmsae-webhook" in held} == {
        "exec-verdict",
        "exec-verdict-2",
        "exec-report-outcome",
    }
    identified = {name for name, item in executors.items() if item.get("fieldPathAsEnv")}
    assert identified == set(executors) - {"exec-changes"}, "what is written says which run and image wrote it"
    others = [
        path
        for path in (ROOT / "pipelines").glob("*.yaml")
        if path.stem != "reevaluate" and "WEBHOOK" in path.read_text()
    ]
    assert not others


def test_what_is_repeated_are_the_evaluations_that_train_nothing() -> None:
    ports = {"sequences", "activations", "sae"}
    evaluations = [stage for stage in stages().values() if stage.name == "evaluate"]
    assert {
        stage.entry
        for stage in evaluations
        if {port.name for port in stage.inputs} == ports and "training" not in stage.code
    } == set(REPEATED)
    for name in ("changes", "reevaluate"):
        assert (stages()[name].repeats, stages()[name].params) == (REPEATS, ReevaluateParams)


@pytest.fixture(scope="module")
def workspace(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with its registry, and without its outputs."""
    root = finished.copy_to(tmp_path_factory.mktemp("reevaluated") / "work")
    with_settings(root)
    call(root, "rm", "-rf", "outputs", ".plmsae/checkpoints")
    return root


def run(root: Path, hook: Hook, *overrides: str, number: int = 1, check: bool = True) -> tuple[list[str], str]:
    """Tasks that were started, in order, and what was printed."""
    arguments = pipeline_arguments(ParamsFile(root / "params.yaml", overrides), ["reevaluate"])
    pods = {"PLMSAE_WEBHOOK": hook.url, "KFP_RUN_ID": f"run-{number}", "PLMSAE_IMAGE_REF": "host/plmsae@sha256:abc"}
    process = run_pipeline(root, arguments, pipeline="reevaluate", caching=True, check=check, settings=pods)
    assert check or process.returncode != 0
    started = [line.split()[0] for line in process.stdout.splitlines() if line.strip().endswith(" started")]
    return [name for name in started if name in ("changes", "reevaluate", "verdict")], process.stdout


def newest(root: Path, task: str) -> Path:
    """The folder of a task in the newest run."""
    runs = sorted((root / "kfp").glob("plmsae-reevaluate-*"), key=lambda path: path.stat().st_mtime_ns)
    (found,) = runs[-1].rglob(f"{task}/executor_output.json")
    return found.parent


@pytest.mark.long
def test_an_unchanged_champion_is_not_evaluated_and_a_new_release_is(workspace: Path, hook: Hook) -> None:
    with connect(workspace) as client:
        before = get_version(client, NAME, 1)
    started, _ = run(workspace, hook)
    assert started == ["changes"]
    with connect(workspace) as client:
        assert get_version(client, NAME, 1) == before
    lines = gzip.decompress(FIXTURE.read_bytes()).splitlines(keepends=True)
    (workspace / "data" / "new.tsv.gz").write_bytes(gzip.compress(b"".join(lines[:-5]), mtime=0))
    newer = "reevaluate.source=data/new.tsv.gz"
    started, _ = run(workspace, hook, newer, number=2)
    assert started == ["changes", "reevaluate", "verdict"]
    folder = newest(workspace, "reevaluate")
    assert "Re-evaluation 1 of models:/" in (folder / "report").read_text(encoding="utf-8")
    assert {"history.csv", "history.png", "reevaluation.json", "metrics.json"} <= {
        path.name for path in (folder / "output").iterdir()
    }
    assert json.loads((folder / "executor_output.json").read_text())["parameterValues"]["verdict"] == "fine"
    with connect(workspace) as client:
        record = json.loads(get_version(client, NAME, 1).tags["reevaluation.1"])
    assert (record["facts"]["kfp_run_id"], record["facts"]["image"]) == ("run-2", "host/plmsae@sha256:abc")
    assert {evaluation: list(each["causes"]) for evaluation, each in record["evaluations"].items()} == {
        "fidelity": ["data"],
        "concepts": ["data"],
    }
    assert run(workspace, hook, newer, number=3)[0] == ["changes"]
    assert hook.received == []


@pytest.mark.long
def test_a_champion_that_drifted_ends_the_run_and_keeps_its_alias(
    finished: Finished, tmp_path: Path, hook: Hook
) -> None:
    root = finished.copy_to(tmp_path / "work")
    with_settings(root)
    assert noise_on_the_champion(root) == 2
    with connect(root) as client:
        aliases = aliases_of(client, NAME)
    started, text = run(root, hook, f"reevaluate.model={CHAMPION}", check=False)
    assert started == ["changes", "reevaluate", "verdict"]
    assert f"'models:/{NAME}/2' has drifted" in text
    assert "Traceback" not in text
    assert json.loads((newest(root, "reevaluate") / "executor_output.json").read_text())["parameterValues"][
        "verdict"
    ] == ("drifted")
    with connect(root) as client:
        assert aliases_of(client, NAME) == aliases
        assert get_version(client, NAME, 2).tags["drift"] == "true"
    (message,) = [json.loads(body) for _, _, body in hook.received]
    assert (message["event"], message["model"]) == ("drifted", f"models:/{NAME}/2")
    # Next week: nothing is evaluated, the run ends the same way, and nobody is told twice.
    started, text = run(root, hook, f"reevaluate.model={CHAMPION}", number=2, check=False)
    assert started == ["changes", "verdict"]
    assert len(hook.received) == 1


@pytest.mark.long
def test_a_failure_is_told_by_its_kind(workspace: Path, hook: Hook) -> None:
    started, text = run(workspace, hook, "reevaluate.source=data/absent.tsv.gz", check=False)
    assert started == ["changes"]
    assert "absent.tsv.gz' does not exist" in text
    ((_, _, body),) = hook.received
    message = json.loads(body)
    assert (message["event"], message["state"], message["run"]) == ("failed", "FAILED", "run-1")
    assert b"absent" not in body
