"""The same code against a real MLflow server process: nothing but the address changes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import plmsae
from plmsae.registry.gates import Gates
from plmsae.registry.load import pull
from plmsae.registry.promote import promote
from plmsae.registry.register import register
from plmsae.registry.tracking import log_stage_run
from tests.registry.outputs import FIDELITY, small_sae, write_outputs


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with an empty database and its own artifact folder."""
    uri = f"http://127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{root}/.plmsae/mlflow/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "server-artifacts")]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "DO_NOT_TRACK": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_serves_every_verb(server: str, tmp_path: Path, root: Path) -> None:
    evidence = write_outputs(root)
    log_stage_run("train_sae", {"k": 8}, {"fvu": 0.3}, evidence.folders["sae"], root, {"manifest_sha256": "a"})
    first = register(evidence, root)
    assert register(evidence, root) == first
    assert promote(first.name, first.version, Gates(), root).promoted
    worse = register(write_outputs(root, seed=1, fidelity={**FIDELITY, "fvu": 0.9}), root)
    assert not promote(worse.name, worse.version, Gates(), root).promoted
    sae = plmsae.load(f"models:/{first.name}@champion")
    trained = small_sae()
    x = torch.randn(3, trained.config.d_model, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.encode(x), trained.encode(x))
    assert (pull(f"models:/{first.name}/2", tmp_path / "pulled").folder / "MODEL_CARD.md").is_file()
    assert list((tmp_path / "server-artifacts").rglob("sae.safetensors"))
