"""`plmsae submit` against an API over real HTTP: what is uploaded, what a run gets, and every refusal before that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler
from kfp.pipeline_spec import pipeline_spec_pb2

from plmsae import cli
from plmsae.cluster.connection import connect
from plmsae.cluster.package import parse_package, read_package
from plmsae.cluster.submit import run_arguments, start
from plmsae.cluster.train_job import TrainJobSettings
from plmsae.errors import TryAgainError, UserError
from plmsae.params import ParamsFile
from tests.cluster import other_knobs
from tests.cluster.conftest import ROOT, SHA256, SOURCE
from tests.cluster.kfp_server import Fault, KfpServer
from tests.cluster.oci_registry import Registry

PARAMS = ROOT / "params.yaml"


def submit(kfp: KfpServer, package: Path, *options: str) -> int:
    given = ["submit", "train", "--host", kfp.host, "--package", str(package), "--params", str(PARAMS)]
    return cli.main([*given, *options])


def parameters(kfp: KfpServer, run_id: str | None = None) -> dict[str, Any]:
    run = kfp.state.runs[run_id] if run_id else next(iter(kfp.state.runs.values()))
    found: dict[str, Any] = run["runtime_config"]["parameters"]
    return found


def posts(kfp: KfpServer) -> list[str]:
    return [path.removeprefix("/apis/v2beta1/") for method, path in kfp.state.requests if method == "POST"]


def test_the_package_is_uploaded_byte_for_byte_and_run(
    kfp: KfpServer, registry: Registry, package_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(kfp, package_file, *SOURCE, "--set", "train_sae.k=16") == 0
    (uploaded,) = kfp.state.packages.values()
    assert uploaded == package_file.read_bytes()
    json_format.ParseDict(next(yaml.safe_load_all(uploaded)), pipeline_spec_pb2.PipelineSpec())
    assert posts(kfp) == ["pipelines", "pipelines/upload_version", "experiments", "runs"]
    ((run_id, run),) = kfp.state.runs.items()
    out = capsys.readouterr().out
    assert f"{kfp.host}/#/runs/details/{run_id}" in out
    assert "(uploaded)" in out
    assert "Run details" not in out
    assert kfp.state.experiments[run["experiment_id"]]["display_name"] == "plmsae"
    assert kfp.state.pipelines[run["pipeline_version_reference"]["pipeline_id"]]["display_name"] == "plmsae-train"
    given = parameters(kfp)
    assert given["k"] == 16
    assert given["source_sha256"] == SHA256
    for name in ("k", "layer", "seed", "tokens", "expansion_factor"):
        assert type(given[name]) is int, name
    section = json.loads(given["train_sae_params"])
    assert "k" not in section
    assert type(section["validate_every"]) is int
    assert [path for _, path, _ in registry.requests] == [registry_path(registry)]


def registry_path(registry: Registry) -> str:
    return f"/v2/lab/plmsae/manifests/{registry.images['lab/plmsae']['1.0']}"


def test_the_same_package_is_uploaded_once_and_another_becomes_a_version(
    kfp: KfpServer, registry: Registry, package_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(kfp, package_file, *SOURCE, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert submit(kfp, package_file, *SOURCE, "--json", "--run-name", "again") == 0
    second = json.loads(capsys.readouterr().out)
    changed = tmp_path / "changed.yaml"
    changed.write_bytes(b"# changed\n" + package_file.read_bytes())
    assert submit(kfp, changed, *SOURCE, "--json") == 0
    third = json.loads(capsys.readouterr().out)
    assert [item["uploaded"] for item in (first, second, third)] == [True, False, True]
    assert posts(kfp).count("pipelines/upload_version") == 2
    assert posts(kfp).count("experiments") == posts(kfp).count("pipelines") == 1
    assert first["version_id"] == second["version_id"] != third["version_id"]
    assert first["pipeline_id"] == second["pipeline_id"] == third["pipeline_id"]
    assert kfp.state.runs[second["run_id"]]["display_name"] == "again"
    assert second["arguments"] == parameters(kfp, second["run_id"])
    assert second["url"].endswith(second["run_id"])


def test_the_pipeline_is_compiled_for_the_image_by_digest(
    kfp: KfpServer, registry: Registry, image: str, monkeypatch: pytest.MonkeyPatch, package_file: Path
) -> None:
    monkeypatch.chdir(ROOT)
    tag = image.partition("@")[0] + ":1.0"
    assert cli.main(["submit", "train", "--host", kfp.host, "--image", tag, *SOURCE]) == 0
    (uploaded,) = kfp.state.packages.values()
    assert uploaded == package_file.read_bytes()
    assert parse_package(uploaded, where="server").images == (image,)


def test_the_pipeline_is_compiled_for_the_nodes_that_the_parameters_name(
    kfp: KfpServer, registry: Registry, image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = ["submit", "train", "--host", kfp.host, "--image", image, *SOURCE, "--set", "train_sae.num_nodes=2"]
    assert cli.main(command) == 2
    assert "needs a volume" in capsys.readouterr().err
    assert cli.main([*command, "--set", "train_sae.num_processes=4", "--state-claim", "claim"]) == 0
    (uploaded,) = kfp.state.packages.values()
    executors = next(yaml.safe_load_all(uploaded))["deploymentSpec"]["executors"]
    (text,) = [item["value"] for item in executors["exec-train-sae"]["container"]["env"] if "JOB" in item["name"]]
    settings = TrainJobSettings.model_validate_json(text)
    assert (settings.num_nodes, settings.num_processes, settings.image) == (2, 4, image)
    section = json.loads(parameters(kfp)["train_sae_params"])
    assert (section["num_nodes"], section["num_processes"]) == (2, 4)


def test_namespace_experiment_and_service_account_are_handed_on(
    kfp: KfpServer, registry: Registry, package_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.state.multi_user = True
    kfp.state.token = "secret-token"
    monkeypatch.setenv("KFP_TOKEN", "secret-token")
    options = ("--namespace", "lab", "--experiment", "layers", "--service-account", "plmsae-runner")
    assert submit(kfp, package_file, *SOURCE, *options) == 0
    (run,) = kfp.state.runs.values()
    (experiment,) = kfp.state.experiments.values()
    (pipeline,) = kfp.state.pipelines.values()
    assert (experiment["display_name"], experiment["namespace"], pipeline["namespace"]) == ("layers", "lab", "lab")
    assert run["service_account"] == "plmsae-runner"


def test_wait_ends_with_the_run(
    kfp: KfpServer, registry: Registry, package_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.state.course = [("SUCCEEDED", {"ingest": ("SUCCEEDED", "")})]
    assert submit(kfp, package_file, *SOURCE, "--wait") == 0
    printed = capsys.readouterr()
    assert "the run ended as SUCCEEDED" in printed.out
    assert "run state=SUCCEEDED done=1 total=" in printed.err


@pytest.mark.parametrize(("state", "code"), [("FAILED", 3), ("CANCELED", 75)])
def test_wait_fails_with_the_run(
    kfp: KfpServer, registry: Registry, package_file: Path, state: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.state.course = [(state, {"train-sae": ("FAILED", "exit code 75")})]
    assert submit(kfp, package_file, *SOURCE, "--wait", "--json") == code
    printed = capsys.readouterr()
    (run_id,) = kfp.state.runs
    assert json.loads(printed.out)["where"].endswith(run_id)
    assert "Traceback" not in printed.err


def test_stopping_to_wait_says_that_the_run_goes_on(
    kfp: KfpServer, registry: Registry, package_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("plmsae.cluster.follow.follow", interrupted)
    assert submit(kfp, package_file, *SOURCE, "--wait") == 130
    assert "the run goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "'ingest.source' = 'data/swissprot.tsv.gz' is a file of this machine"),
        (("--set", "ingest.source=s3://bucket/key"), "parameter 'source_sha256' is missing"),
        (("--set", "ingest.source=https://host/key"), "parameter 'source_sha256' is missing"),
        ((*SOURCE, "--set", "ingest.structures=pdb"), "'ingest.structures' = 'pdb' is of this machine"),
        ((*SOURCE, "--set", "train_sae.k=eight"), "'train_sae.k' = 'eight': should be a valid integer"),
        ((*SOURCE, "--set", "train_sae.seed=3"), "a pipeline has one 'seed'"),
        ((*SOURCE, "--set", "trainsae.k=3"), "no stage that reads 'trainsae.k'"),
        ((*SOURCE, "--set", "train_sae.kk=3"), "unknown parameter 'train_sae.kk'"),
        ((*SOURCE, "--params", "none.yaml"), "parameter file 'none.yaml' does not exist"),
        ((*SOURCE, "--image", "ghcr.io/lab/plmsae:1"), "--package is compiled already"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_sent(
    kfp: KfpServer, package_file: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(kfp, package_file, *options) == 2
    assert message in capsys.readouterr().err
    assert kfp.state.requests == []


def test_a_package_with_other_types_is_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    compiler.Compiler().compile(other_knobs.pipeline, str(file))
    with pytest.raises(UserError) as caught:
        run_arguments(read_package(file), ParamsFile(PARAMS, SOURCE[1::2]))
    assert "parameter 'k' takes a text, given 32 (int)" in caught.value.problem
    assert "there is no parameter 'tokens'" in caught.value.problem
    assert "parameter 'budget' is missing" in caught.value.problem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "train"], "no address of Kubeflow Pipelines is given"),
        (["submit", "train", "--host", "http://127.0.0.1:1"], "no image is given"),
        (
            ["submit", "trian", "--host", "http://127.0.0.1:1", "--image", f"x/y@sha256:{SHA256}"],
            "did you mean 'train'",
        ),
        (["submit", "other", "--host", "http://127.0.0.1:1", "--package", "PACKAGE"], "is pipeline 'plmsae-train'"),
        (["submit", "train", "--host", "http://127.0.0.1:1", "--package", "none.yaml"], "cannot be read"),
        (["submit", "train", "--host", "http://127.0.0.1:1", "--image", "Not An Image"], "is not an image reference"),
    ],
)
def test_an_incomplete_command_says_what_is_missing(
    arguments: list[str],
    message: str,
    package_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main([str(package_file) if item == "PACKAGE" else item for item in arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_image_is_found_before_anything_is_created(
    kfp: KfpServer, registry: Registry, package_file: Path, image: str, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "missing.yaml"
    file.write_text(package_file.read_text().replace(image, image.partition("@")[0] + ":gone"))
    assert submit(kfp, file, *SOURCE) == 2
    assert "is not in the registry" in capsys.readouterr().err
    assert posts(kfp) == []
    assert submit(kfp, file, *SOURCE, "--no-image-check") == 0
    assert len(kfp.state.runs) == 1


def test_an_image_that_cannot_be_checked_is_a_warning(
    kfp: KfpServer, registry: Registry, package_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.access = "private"
    assert submit(kfp, package_file, *SOURCE, "--json") == 0
    printed = capsys.readouterr()
    assert "warning: image" in printed.err
    assert json.loads(printed.out)["uploaded"] is True


def test_the_committed_package_asks_for_an_image_of_ones_own(
    kfp: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(kfp, ROOT / "pipelines" / "train.yaml", *SOURCE) == 2
    assert "is the example that packages are committed with" in capsys.readouterr().err
    assert posts(kfp) == []


def test_what_the_server_refuses_is_said_in_its_words(kfp: KfpServer, package_file: Path) -> None:
    package = read_package(package_file)
    with connect(kfp.host) as client:
        with pytest.raises(UserError, match="input parameter k requires type"):
            start(client, kfp.host, package, {"source": "s3://b/k", "source_sha256": "a", "k": "x"}, experiment="e")
        with pytest.raises(UserError, match="not required by pipeline"):
            start(client, kfp.host, package, {"source": "s3://b/k", "source_sha256": "a", "kk": 1}, experiment="e")
        broken = parse_package(package.text.replace(b"2.1.0", b"9.9.9"), where="test")
        with pytest.raises(UserError, match="only supports schema version"):
            start(client, kfp.host, broken, {}, experiment="e")


def test_a_server_that_fails_half_way_can_be_asked_again(
    kfp: KfpServer, registry: Registry, package_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp.state.faults = [Fault("/runs", 500, times=1)]
    assert submit(kfp, package_file, *SOURCE) == TryAgainError.exit_code
    assert "status 500" in capsys.readouterr().err
    assert kfp.state.runs == {}
    assert submit(kfp, package_file, *SOURCE) == 0
    assert posts(kfp).count("pipelines/upload_version") == 1


def test_two_who_upload_at_once_share_the_version(kfp: KfpServer, package_file: Path) -> None:
    package = read_package(package_file)
    arguments = {"source": "s3://bucket/key", "source_sha256": SHA256}
    with connect(kfp.host) as client:
        first = start(client, kfp.host, package, arguments, experiment="e")
        # The second looked before the first had uploaded: its look-ups find nothing, its upload is refused.
        nothing = {"Content-Type": "application/json"}
        kfp.state.faults = [
            Fault("/versions", 200, b"{}", nothing, times=1),
            Fault("v2beta1/pipelines", 200, b"{}", nothing, times=1),
        ]
        second = start(client, kfp.host, package, arguments, experiment="e")
    assert (first.pipeline_id, first.version_id) == (second.pipeline_id, second.version_id)
    assert not second.uploaded
    assert len(kfp.state.versions) == len(kfp.state.pipelines) == 1


def test_a_process_of_its_own_leaves_the_home_alone(
    kfp: KfpServer, registry: Registry, package_file: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kfp.state.token = "secret-token"
    process = subprocess.run(
        [sys.executable, "-m", "plmsae.cli", "submit", "train", "--package", str(package_file), "--json", *SOURCE],
        cwd=ROOT,
        env={**os.environ, "HOME": str(home), "KFP_HOST": kfp.host, "KFP_TOKEN": "secret-token"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["run_id"] in kfp.state.runs
    assert process.stderr == ""
    assert "secret-token" not in process.stdout
    assert list(home.rglob("*")) == []
