"""Registering: what stands on the version, and that repeating or cutting it off leaves exactly one of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from plmsae.registry.connection import connect, experiment_id, locate
from plmsae.registry.load import pull
from plmsae.registry.register import Registration, register
from plmsae.registry.versions import list_versions, registry_name
from tests.registry.outputs import CONCEPTS, FIDELITY, MORE, TRAINING, write_outputs

NAME = "plmsae.esm_small.layer3.topk"


def test_every_metric_can_be_read_back_from_the_version_alone(root: Path) -> None:
    done = register(write_outputs(root), root)
    assert (done.name, done.version) == (NAME, 1)
    client = MlflowClient(tracking_uri=locate(root).uri)
    version = client.get_model_version(NAME, "1")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    found = {metric.key: metric.value for metric in logged.metrics}
    expected = {
        **{f"fidelity.{name}": value for name, value in FIDELITY.items()},
        **{f"concepts.{name}": value for name, value in CONCEPTS.items()},
        **{f"train_sae.{name}": value for name, value in TRAINING.items()},
        **{f"{evaluation}.{name}": value for evaluation, found in MORE.items() for name, value in found.items()},
    }
    assert found == expected
    assert "91.2 % [90.0, 92.5]" in version.description


def test_the_version_says_where_it_comes_from(root: Path) -> None:
    evidence = write_outputs(root, seed=7)
    done = register(evidence, root)
    with connect(root) as client:
        version = list_versions(client)[0]
    assert version.aliases == ("candidate",)
    expected = {
        "plm": "esm_small",
        "layer": "3",
        "hook": "residual",
        "architecture": "topk",
        "seed": "7",
        "data_source": "UniProtKB/Swiss-Prot",
        "data_release": "2025_04",
        "sae_sha256": done.sae_sha256,
        "evidence_sha256": done.evidence_sha256,
    }
    assert {key: version.tags[key] for key in expected} == expected
    assert version.tags["plm_revision"].startswith("sha256:")
    assert {"params_sha256", "data_manifest_sha256", "evaluation_sha256"} <= set(version.tags)


def test_the_commit_is_recorded_inside_a_git_repository(root: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (root / "params.yaml").write_text("a: 1\n")
    git("add", "params.yaml")
    git("commit", "--quiet", "--message", "start")
    register(write_outputs(root), root)
    with connect(root) as client:
        tags = list_versions(client)[0].tags
    assert (tags["git_sha"], tags["git_dirty"]) == (git("rev-parse", "HEAD"), "false")


def test_the_image_and_the_kubeflow_run_are_recorded_where_the_task_says_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register(write_outputs(root), root)
    monkeypatch.setenv("PLMSAE_IMAGE_REF", "registry.example.org/plmsae@sha256:" + "a" * 64)
    monkeypatch.setenv("KFP_RUN_ID", "5b1f9c0e")
    assert register(write_outputs(root), root) == first  # where it ran is no evidence: the version stays the same
    second = register(write_outputs(root, seed=1), root)
    with connect(root) as client:
        tags = {item.version: item.tags for item in list_versions(client)}
    assert {"image", "kfp_run_id"}.isdisjoint(tags[first.version])
    assert tags[second.version]["image"] == "registry.example.org/plmsae@sha256:" + "a" * 64
    assert tags[second.version]["kfp_run_id"] == "5b1f9c0e"


def test_equal_evidence_is_one_version_and_other_evidence_another(root: Path) -> None:
    first = register(write_outputs(root), root)
    assert register(write_outputs(root), root) == first
    other = register(write_outputs(root, seed=1), root)
    assert other.version == 2
    with connect(root) as client:
        assert [item.aliases for item in list_versions(client)] == [(), ("candidate",)]
    assert register(write_outputs(root), root) == first
    with connect(root) as client:
        assert [item.aliases for item in list_versions(client)] == [("candidate",), ()]


def test_an_evaluation_that_changed_is_other_evidence(root: Path) -> None:
    first = register(write_outputs(root), root)
    second = register(write_outputs(root, fidelity={**FIDELITY, "fvu": 0.30}), root)
    assert second.version == 2
    assert second.sae_sha256 == first.sae_sha256
    assert second.evidence_sha256 != first.evidence_sha256


def test_the_same_pipeline_elsewhere_registers_the_same_record(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here = register(write_outputs(root), root)
    assert register(write_outputs(elsewhere), elsewhere) == here


def test_lost_files_are_uploaded_again(root: Path) -> None:
    evidence = write_outputs(root)
    done = register(evidence, root)
    weights = next((root / ".plmsae" / "mlflow" / "artifacts").rglob("sae.safetensors"))
    for path in weights.parent.iterdir():
        path.unlink()
    weights.parent.rmdir()
    assert register(evidence, root) == done
    pull(f"models:/{NAME}/1", root / "pulled")


def test_nothing_in_the_registry_names_the_folder_it_was_made_in(root: Path) -> None:
    register(write_outputs(root), root)
    files = [path for path in (root / ".plmsae" / "mlflow" / "artifacts").rglob("*") if path.is_file()]
    assert {"MLmodel", "model.py", "MODEL_CARD.md", "sae.safetensors"} <= {path.name for path in files}
    for path in files:
        for secret in (str(root), str(Path.home()), "/tmp/plmsae-"):
            assert secret.encode() not in path.read_bytes(), path
        assert path.suffix not in {".pkl", ".pickle", ".joblib"}


class Cut(BaseException):
    """Stands for the kill of the process: nothing catches it."""


STEPS = (
    "create_run",
    "create_logged_model",
    "log_model_artifacts",
    "log_batch",
    "finalize_logged_model",
    "set_terminated",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_registration_cut_off_at_any_step_is_completed_by_the_next(
    root: Path, step: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = write_outputs(root)
    whole = getattr(MlflowClient, step)

    def cut(*args: object, **kwargs: object) -> None:
        if when == "after":
            whole(*args, **kwargs)
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, cut)
        with pytest.raises(Cut):
            register(evidence, root)
    assert register(evidence, root).version == 1
    with connect(root) as client:
        versions = list_versions(client)
        runs = client.search_runs([experiment_id(client, root)])
    assert [(item.version, item.aliases) for item in versions] == [(1, ("candidate",))]
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert len(versions[0].metrics) == len(FIDELITY) + len(CONCEPTS) + len(TRAINING) + len(MORE)
    pulled = pull(f"models:/{NAME}/1", root / "pulled")
    assert json.loads((pulled.folder / "metrics.json").read_text())["fidelity.fvu"] == FIDELITY["fvu"]


_KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from mlflow import MlflowClient
import os, signal
MlflowClient.log_batch = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from plmsae.registry.register import register
from tests.registry.outputs import write_outputs
register(write_outputs(Path({root!r})), Path({root!r}))
"""


def test_a_registration_that_is_killed_is_completed_by_the_next(root: Path) -> None:
    script = _KILLED.format(tests=str(Path(__file__).parents[2]), root=str(root))
    assert subprocess.run([sys.executable, "-c", script], cwd=root, timeout=120).returncode == -signal.SIGKILL
    assert register(write_outputs(root), root).version == 1


@pytest.mark.parametrize(
    ("plm", "hook", "expected"),
    [
        ("esm_small", "residual", "plmsae.esm_small.layer4.topk"),
        ("facebook/esm2_t6_8M_UR50D", "residual", "plmsae.esm2_t6_8M_UR50D.layer4.topk"),
        ("./models/my LM v1.5/", "residual", "plmsae.my_LM_v1_5.layer4.topk"),
        ("esm_small", "mlp", "plmsae.esm_small.layer4_mlp.topk"),
    ],
)
def test_names(plm: str, hook: str, expected: str) -> None:
    assert registry_name(plm, 4, hook, "topk") == expected


def test_a_registration_is_only_what_repeats() -> None:
    assert set(Registration.__dataclass_fields__) == {"name", "version", "sae_sha256", "evidence_sha256"}
