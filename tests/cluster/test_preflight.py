"""What is looked for before a run: each thing found, each thing missing, and nothing created if one is."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae import cli
from plmsae.cluster.compile import compile_pipeline
from plmsae.cluster.finding import Finding, exit_code, refuse
from plmsae.cluster.namespace import Named, named_objects
from plmsae.cluster.package import read_package
from plmsae.cluster.placement import Placement
from plmsae.cluster.preflight import CHECKS, READ_BYTES
from plmsae.cluster.sections import pipeline_arguments
from plmsae.errors import TryAgainError, UserError
from plmsae.params import ParamsFile
from plmsae.registry.register import register
from plmsae.stages.catalog import load_params, stage
from plmsae.stages.executor_input import resolve_params
from tests.cluster.conftest import ROOT, committed
from tests.cluster.kfp_server import KfpServer
from tests.cluster.oci_registry import Registry
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import LAYER, write_outputs
from tests.s3server import S3Server

__all__ = ["empty_registry", "root"]  # fixtures
BYTES = b">a\nMKV\n"
SHA256 = hashlib.sha256(BYTES).hexdigest()
NAME = f"plmsae.esm_small.layer{LAYER}.topk"
Submit = Callable[..., int]


@pytest.fixture(autouse=True)
def _nothing_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "MLFLOW_TRACKING_URI", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def evaluate_file(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("package") / "evaluate.yaml"
    file.write_text(committed("evaluate", image), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def reevaluate_file(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("package") / "reevaluate.yaml"
    file.write_text(committed("reevaluate", image), encoding="utf-8")
    return file


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with a protein file, which the environment has address and keys of."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    name = s3.bucket()
    s3.client().put_object(Bucket=name, Key="a.fasta", Body=BYTES)
    return name


@pytest.fixture
def submit(kfp: KfpServer, registry: Registry, package_file: Path) -> Submit:
    def run(
        source: str = "s3://proteins/a.fasta", *options: str, sha256: str = SHA256, file: Path = package_file
    ) -> int:
        given = ["--set", f"ingest.source={source}", "--set", f"ingest.source_sha256={sha256}", *options]
        command = ["submit", file.stem, "--host", kfp.host, "--package", str(file)]
        return cli.main([*command, "--params", str(ROOT / "params.yaml"), *given])

    return run


def checks(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, Any]]]:
    """Check -> its findings, of `--check --json`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in json.loads(capsys.readouterr().out)["checks"]:
        found.setdefault(item["check"], []).append(item)
    return found


def posts(kfp: KfpServer) -> list[str]:
    return [path for method, path in kfp.state.requests if method == "POST"]


def test_what_nobody_here_knows_is_not_asked_and_a_check_creates_nothing(
    kfp: KfpServer, submit: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("s3://proteins/a.fasta", "--check", "--json") == 0
    found = checks(capsys)
    assert {name: {item["status"] for item in items} for name, items in found.items()} == {
        "kubeflow": {"ok"},
        "images": {"ok"},
        "data": {"not asked"},
        "registry": {"not asked"},
        "settings": {"not asked"},
    }
    listed = found["settings"][0]["found"]
    assert "configmaps plmsae, " in listed
    assert "secrets plmsae-s3 (optional)" in listed
    assert posts(kfp) == []


def test_a_file_is_told_by_its_bytes(
    kfp: KfpServer, submit: Submit, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(f"s3://{bucket}/a.fasta", "--check", "--json") == 0
    (item,) = checks(capsys)["data"]
    assert item["status"] == "ok"
    assert f"{len(BYTES)} bytes, sha256 {SHA256[:12]}" in item["found"]
    assert submit(f"s3://{bucket}/a.fasta") == 0
    assert len(kfp.state.runs) == 1


@pytest.mark.parametrize(
    ("key", "sha256", "words"),
    [
        ("b.fasta", SHA256, "b.fasta' does not exist"),
        ("a.fasta", 64 * "f", f"has sha256 {SHA256}, not {64 * 'f'}"),
        ("empty.fasta", SHA256, "empty.fasta' is empty"),
    ],
)
def test_a_file_that_is_not_there_or_another_keeps_the_run_from_being_created(
    kfp: KfpServer,
    submit: Submit,
    s3: S3Server,
    bucket: str,
    key: str,
    sha256: str,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    s3.client().put_object(Bucket=bucket, Key="empty.fasta", Body=b"")
    assert submit(f"s3://{bucket}/{key}", sha256=sha256) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "nothing was created" in err
    assert posts(kfp) == []
    assert submit(f"s3://{bucket}/{key}", "--skip", "data", sha256=sha256) == 0


def test_a_bucket_that_is_not_there_or_a_store_that_does_not_answer(
    kfp: KfpServer, submit: Submit, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ["--set", "extract_activations.store=s3://no-such-bucket/x"]
    assert submit(f"s3://{bucket}/a.fasta", *store) == 2
    assert "bucket 'no-such-bucket' does not exist" in capsys.readouterr().err
    assert submit(f"s3://{bucket}/a.fasta", "--set", f"extract_activations.store=s3://{bucket}/x", "--check") == 0
    assert f"the bucket of 's3://{bucket}/x' is there" in capsys.readouterr().out
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert submit(f"s3://{bucket}/a.fasta") == TryAgainError.exit_code
    assert "cannot be reached" in capsys.readouterr().err
    assert posts(kfp) == []


def test_a_large_file_is_taken_at_its_word(
    submit: Submit, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("plmsae.cluster.preflight.READ_BYTES", len(BYTES) - 1)
    assert READ_BYTES > 10**8
    assert submit(f"s3://{bucket}/a.fasta", "--check", "--json") == 0
    (item,) = checks(capsys)["data"]
    assert (item["status"], "was not compared" in item["found"]) == ("warning", True)
    s3.client().put_object(Bucket=bucket, Key="said.fasta", Body=BYTES, Metadata={"sha256": 64 * "e"})
    assert submit(f"s3://{bucket}/said.fasta") == 2
    assert f"has sha256 {64 * 'e'}, not {SHA256}" in capsys.readouterr().err


def test_the_registry_answers_and_has_the_model(
    kfp: KfpServer,
    submit: Submit,
    evaluate_file: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(write_outputs(root), root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/.plmsae/mlflow/mlflow.db")
    model = f"resolve.model=models:/{NAME}@candidate"
    assert submit("s3://p/a.fasta", "--set", model, "--check", "--json", file=evaluate_file) == 0
    assert [item["found"] for item in checks(capsys)["registry"]][1] == f"the SAE is models:/{NAME}/1, layer {LAYER}"
    assert submit("s3://p/a.fasta", "--set", model + "s", file=evaluate_file) == 2
    assert "did you mean 'candidate'?" in capsys.readouterr().err
    assert submit("s3://p/a.fasta", file=evaluate_file) == 2, "the only champion, and there is none"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert submit("s3://p/a.fasta", "--set", model, file=evaluate_file) == TryAgainError.exit_code
    assert "the registry 'http://127.0.0.1:1' cannot be reached" in capsys.readouterr().err
    assert posts(kfp) == []
    assert submit("s3://p/a.fasta", "--set", model, "--skip", "registry", file=evaluate_file) == 0


def test_the_sae_s_place_is_not_asked_for(
    kfp: KfpServer, submit: Submit, evaluate_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in ("extract_activations.layer=2", "extract_activations.plm=x", "extract_activations.also=[]"):
        assert submit("s3://p/a.fasta", "--set", change, file=evaluate_file) == 2
        assert "does not ask for" in capsys.readouterr().err
    assert submit("s3://p/a.fasta", "--set", "extract_activations.dtype=float32", file=evaluate_file) == 0
    (run,) = kfp.state.runs.values()
    section = json.loads(run["runtime_config"]["parameters"]["resolve_params"])
    assert section["extract_activations"]["dtype"] == "float32"
    assert "layer" not in section["extract_activations"]


def reevaluate(kfp: KfpServer, file: Path, *options: str) -> int:
    command = [
        "submit",
        "reevaluate",
        "--host",
        kfp.host,
        "--package",
        str(file),
        "--params",
        str(ROOT / "params.yaml"),
    ]
    return cli.main([*command, *(item for option in options for item in ("--set", option))])


def test_a_reevaluation_names_its_newest_data_and_needs_no_checksum(
    kfp: KfpServer, registry: Registry, reevaluate_file: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reevaluate(kfp, reevaluate_file) == 2
    assert "newest proteins are 'data/swissprot.tsv.gz', a file of this machine" in capsys.readouterr().err
    source = f"reevaluate.source=s3://{bucket}/a.fasta"
    assert reevaluate(kfp, reevaluate_file, source, "train_sae.k=3") == 2
    assert "no stage that reads 'train_sae.k'" in capsys.readouterr().err
    labels = ("evaluate.probes.labels=mine.csv", f"evaluate.probes.labels_sha256={SHA256}")
    assert reevaluate(kfp, reevaluate_file, source, *labels) == 2
    assert "parameter 'evaluate.probes.labels' = 'mine.csv' is of this machine" in capsys.readouterr().err
    assert reevaluate(kfp, reevaluate_file, f"reevaluate.source=s3://{bucket}/b.fasta") == 2
    assert "b.fasta' does not exist" in capsys.readouterr().err
    assert posts(kfp) == []
    given = ("reevaluate.model=models:/x@champion", "evaluate.concepts.min_instances=4")
    assert reevaluate(kfp, reevaluate_file, f"ingest.source=s3://{bucket}/a.fasta", *given) == 0
    (run,) = kfp.state.runs.values()
    arguments = run["runtime_config"]["parameters"]
    assert set(arguments) == {"source", "model", "reevaluate_params"}
    assert (arguments["source"], arguments["model"]) == (f"s3://{bucket}/a.fasta", "models:/x@champion")
    values = {"source": arguments["source"], "model": arguments["model"], "params": arguments["reevaluate_params"]}
    params = resolve_params(stage("reevaluate"), values)
    file = ParamsFile(ROOT / "params.yaml", [f"ingest.source=s3://{bucket}/a.fasta", *given])
    expected = load_params(file, stage("reevaluate")).model_dump()
    assert params.model_dump() == {**expected, "source": arguments["source"]}
    assert expected["stages"]["evaluate@concepts"]["min_instances"] == 4


def test_the_guide_s_run_of_a_reevaluation_is_accepted() -> None:
    page = (ROOT / "docs" / "how-to" / "reevaluate.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^    plmsae (submit [^#\n]+)", page, re.MULTILINE)
    args = cli.build_parser("submit").parse_args(shlex.split(command))
    assert args.pipeline == "reevaluate"
    file = ParamsFile(ROOT / "params.yaml", args.set)
    assert pipeline_arguments(file, ["reevaluate"])["source"] == "s3://BUCKET/uniprot_sprot.dat.gz"


def test_everything_that_is_wrong_is_said_at_once(
    kfp: KfpServer, submit: Submit, registry: Registry, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.access = "broken"
    assert submit(f"s3://{bucket}/b.fasta", "--check", "--json") == 2
    found = checks(capsys)
    assert (found["images"][0]["status"], found["images"][0]["exit_code"]) == ("failed", 75)
    assert (found["data"][0]["status"], found["data"][0]["exit_code"]) == ("failed", 2)
    for item in (found["images"][0], found["data"][0]):
        assert item["where"]
        assert item["fix"]
    assert submit(f"s3://{bucket}/b.fasta", "--check") == 2
    out = capsys.readouterr().out
    assert "a run would not start" in out
    assert "fix: " in out
    assert submit(f"s3://{bucket}/a.fasta") == TryAgainError.exit_code
    assert posts(kfp) == []


def test_a_kubeflow_that_does_not_answer_is_one_of_the_findings(
    package_file: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", "ingest.source=s3://p/a", "--set", f"ingest.source_sha256={SHA256}", "--check", "--json"]
    command = ["submit", "train", "--host", "http://127.0.0.1:1", "--package", str(package_file)]
    assert cli.main([*command, "--params", str(ROOT / "params.yaml"), *given]) == TryAgainError.exit_code
    found = checks(capsys)
    assert "cannot be reached" in found["kubeflow"][0]["found"]
    assert found["images"][0]["status"] == "ok"


def test_failures_have_the_exit_code_of_the_worst() -> None:
    fine, later = Finding("a", "ok", "x"), Finding("b", "failed", "y", exit_code=75)
    wrong = Finding("c", "failed", "z", "here", "so", exit_code=2)
    assert [exit_code(items) for items in ([fine], [fine, later], [later, wrong])] == [0, 75, 2]
    refuse([fine])
    with pytest.raises(TryAgainError, match="y"):
        refuse([later])
    with pytest.raises(UserError, match=r"y; z[\s\S]*here[\s\S]*so; nothing was created"):
        refuse([later, wrong])


def test_the_objects_that_pods_name(image: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    placement = Placement(image_pull_secrets=["pull"])
    file.write_text(compile_pipeline("train", image=image, root=ROOT, state_claim="state", placement=placement))
    assert named_objects(read_package(file)) == [
        Named("configmaps", "plmsae", True, ("MLFLOW_TRACKING_URI",)),
        Named("persistentvolumeclaims", "state", True),
        Named("secrets", "plmsae-mlflow", False),
        Named("secrets", "plmsae-s3", False),
        Named("secrets", "pull", True),
    ]
    named = named_objects(read_package(ROOT / "pipelines" / "reevaluate.yaml"))
    assert Named("secrets", "plmsae-webhook", False) in named


@contextmanager
def cluster(objects: dict[str, dict[str, Any] | int]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The API of a cluster that has these objects (`configmaps/plmsae`), or answers with a status."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Accept"]))
            found = objects.get(self.path.split("/", 5)[5], 404)
            status, body = (found, {"kind": "Status"}) if isinstance(found, int) else (200, found)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kubeconfig(folder: Path, host: str) -> Path:
    file = folder / "kubeconfig"
    parts = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": host}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "lab"}}],
    }
    file.write_text(yaml.safe_dump(parts))
    return file


CONFIG_MAP = {"metadata": {"name": "plmsae"}, "data": {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}}
NAMED = {"metadata": {"name": "x"}}


def test_the_namespace_is_asked_for_what_the_pods_name_and_for_no_secret_s_contents(
    kfp: KfpServer,
    submit: Submit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    objects: dict[str, dict[str, Any] | int] = {"configmaps/plmsae": CONFIG_MAP, "secrets/plmsae-s3": NAMED}
    objects["serviceaccounts/plmsae-runner"] = NAMED
    with cluster(objects) as (host, asked):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, host)))
        options = ("--service-account", "plmsae-runner")
        assert submit("s3://p/a", *options, "--check", "--json") == 0
        found = {item["found"]: item["status"] for item in checks(capsys)["settings"]}
        assert found == {
            "configmaps plmsae is there": "ok",
            "secrets plmsae-mlflow is not there; pods start without it": "ok",
            "secrets plmsae-s3 is there": "ok",
            "serviceaccounts plmsae-runner is there": "ok",
        }
        assert {path.split("/")[4] for path, _ in asked} == {"lab"}
        assert all("PartialObjectMetadata" in accept for path, accept in asked if "/secrets/" in path)
        del objects["configmaps/plmsae"]
        objects["serviceaccounts/plmsae-runner"] = 404
        assert submit("s3://p/a", *options) == 2
        err = capsys.readouterr().err
        assert "configmaps plmsae is not there; serviceaccounts plmsae-runner is not there" in err
        assert "kubectl apply -n lab -k k8s/base" in err
        objects["configmaps/plmsae"] = {"metadata": {}, "data": {"other": "x"}}
        assert submit("s3://p/a") == 2
        assert "configmaps plmsae has no key MLFLOW_TRACKING_URI" in capsys.readouterr().err
        objects |= {"configmaps/plmsae": 403, "secrets/plmsae-s3": 403}
        assert submit("s3://p/a", "--check") == 0
        out = capsys.readouterr().out
        assert "configmaps plmsae: this account may not look" in out
        assert "secret-token" not in out
        objects["configmaps/plmsae"] = 500
        assert submit("s3://p/a") == TryAgainError.exit_code
        assert "status 500" in capsys.readouterr().err
    assert posts(kfp) == []
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert submit("s3://p/a") == 2
    assert "the kubeconfig cannot be used" in capsys.readouterr().err
    assert submit("s3://p/a", "--skip", "settings") == 0


def test_the_guide_s_commands_are_those_of_the_command_line() -> None:
    page = (ROOT / "docs" / "how-to" / "kubeflow.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^    (plmsae [^#\n]+)", page, re.MULTILINE)
    pipelines = set()
    for command in commands:
        _, verb, *rest = shlex.split(command)
        pipelines.add(cli.build_parser(verb).parse_args([verb, *rest]).pipeline)
    assert pipelines == {"train", "evaluate", "steer"}
    named = re.search(r"`--skip ([^`]+)`", page)
    assert named is not None
    assert tuple(named[1].split("\\|")) == CHECKS
