"""The same code against a real MLflow server with its artifacts on S3: nothing but the address changes."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import plmsae
from plmsae.errors import TryAgainError, UserError
from plmsae.registry.connection import connect
from plmsae.registry.gates import Gates
from plmsae.registry.load import pull
from plmsae.registry.promote import promote
from plmsae.registry.reevaluation import download_report, open_version, write
from plmsae.registry.register import register
from plmsae.registry.rollback import rollback
from plmsae.registry.tracking import log_stage_run
from plmsae.registry.versions import aliases_of, get_version, list_versions
from tests.registry.outputs import FIDELITY, small_sae, write_outputs
from tests.registry.server import mlflow_server
from tests.registry.test_reevaluation import measured
from tests.s3server import S3Server, free_port, start

HIDDEN = "plmsae-object-store"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has no credentials of any object store."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3_", "HTTP_PROXY", "http_proxy"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.bucket()


@pytest.fixture
def server(
    bucket: str, s3_server: S3Server, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A server with an empty database, and a bucket at an address that it alone can reach (through a proxy)."""
    environment = {
        **s3_server.env,
        "AWS_ENDPOINT_URL": f"http://{HIDDEN}:8333",
        "HTTP_PROXY": s3_server.url,
        "NO_PROXY": "127.0.0.1,localhost",
    }
    database = f"sqlite:///{root}/.plmsae/mlflow/mlflow.db"
    with mlflow_server(tmp_path, database, f"s3://{bucket}/artifacts", environment) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def status(uri: str, host: str, path: str = "/api/2.0/mlflow/experiments/search?max_results=1") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(uri + path, headers={"Host": host})) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_with_artifacts_on_s3_serves_every_verb(
    server: str,
    bucket: str,
    s3_server: S3Server,
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(OSError, match=r".+"):
        socket.create_connection((HIDDEN, 8333), timeout=5)
    evidence = write_outputs(root)
    log_stage_run("train_sae", {"k": 8}, {"fvu": 0.3}, evidence.folders["sae"], root, {"manifest_sha256": "a"})
    first = register(evidence, root)
    assert register(evidence, root) == first
    assert promote(first.name, first.version, Gates(), root).promoted
    worse = register(write_outputs(root, seed=1, fidelity={**FIDELITY, "fvu": 0.9}), root)
    assert not promote(worse.name, worse.version, Gates(), root).promoted
    better = register(write_outputs(root, seed=2, fidelity={**FIDELITY, "fvu": 0.25}), root)
    decision = promote(better.name, better.version, Gates(), root)
    assert (decision.promoted, decision.compared_with) == (True, first.version)
    assert plmsae.load(f"models:/{first.name}@champion").config.training["seed"] == 2

    done = rollback(first.name, "a test", root)
    assert (done.from_version, done.to_version) == (better.version, first.version)
    with connect(root) as client:
        assert aliases_of(client, first.name) == {"candidate": 3, "champion": 1, "previous": 3}
        assert '"reason":"a test"' in get_version(client, first.name, better.version).tags["rollback"]
    sae = plmsae.load(f"models:/{first.name}@champion")
    trained = small_sae()
    x = torch.randn(3, trained.config.d_model, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.encode(x), trained.encode(x))
    assert (pull(f"models:/{first.name}/2", tmp_path / "pulled").folder / "MODEL_CARD.md").is_file()

    version = open_version(f"models:/{first.name}@champion", root)
    record = write(version, {"fidelity": measured(0.5)}, {}, root)
    assert (record["number"], record["verdict"]) == (1, "drifted")
    again = open_version(f"models:/{first.name}@champion", root)
    assert again.records == {1: record}
    assert again.registered.metrics["reevaluation.fidelity.fvu"] == 0.5
    download_report(first.name, version.registered.version, 1, tmp_path / "seen", root)
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"report.html", "history.csv", "history.png"}

    weights = [key for key in s3_server.objects(bucket) if key.endswith("sae.safetensors")]
    assert len(weights) == 3
    assert all(key.startswith("artifacts/") for key in weights)
    # What the server's own defence lets in: the names of k8s/base/mlflow.yaml, and a probe by any name.
    assert status(server, "plmsae-mlflow:5000") == 200
    assert status(server, "plmsae-mlflow.team.svc.cluster.local:5000") == 200
    assert status(server, "elsewhere.example.org") == 403
    assert status(server, "10.1.2.3:5000", "/health") == 200
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("127.0.0.1", "0.0.0.0"))
    with pytest.raises(UserError, match="does not answer to this name"), connect(root) as client:
        list_versions(client)
    assert capfd.readouterr().out == ""  # or `--json` of a verb would be no JSON


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bucket_that_refuses_or_is_down_is_said_and_the_next_attempt_completes(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{root}/.plmsae/mlflow/mlflow.db"
    evidence, port = write_outputs(root), free_port()
    uri = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with ExitStack() as until_down:
        s3 = until_down.enter_context(start(enforced=True))
        bucket = s3.bucket()
        reader = s3.user(bucket, "s3:ListBucket", "s3:GetObject")
        writer = s3.user(bucket, "s3:ListBucket", "s3:GetObject", "s3:PutObject")
        s3.enforce()
        with mlflow_server(tmp_path, database, f"s3://{bucket}/artifacts", reader.env, port):
            with pytest.raises(TryAgainError) as caught:
                register(evidence, root)
            assert "cannot store or fetch files" in str(caught.value)
            assert uri in str(caught.value)
            with connect(root) as client:
                assert list_versions(client) == []
        assert "AccessDenied" in (tmp_path / "server.log").read_text()

        keys = {**writer.env, "AWS_MAX_ATTEMPTS": "1"}
        with mlflow_server(tmp_path, database, f"s3://{bucket}/artifacts", keys, port):
            done = register(evidence, root)
            assert done.version == 1
            assert (pull(f"models:/{done.name}/1", tmp_path / "pulled").folder / "sae.safetensors").is_file()
            until_down.close()
            with pytest.raises(TryAgainError, match="cannot store or fetch files"):
                pull(f"models:/{done.name}/1", tmp_path / "again")
            assert not (tmp_path / "again").exists()
    with pytest.raises(TryAgainError, match="cannot be reached"):
        pull(f"models:/{done.name}/1", tmp_path / "again")
