"""A real MLflow server in a process of its own, started as k8s/base/mlflow.yaml says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.k8s.manifests import K8S, load
from tests.s3server import free_port


def command(port: int, destination: str, app: str | None = None) -> list[str]:
    """The container's command, with what is different on one machine put in place; `app` is `basic-auth` or None."""
    (container,) = load(K8S / "base" / "mlflow.yaml")[1]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"]
    arguments = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    here = {"host": "127.0.0.1", "port": str(port), "workers": "1", "artifacts-destination": destination}
    assert set(here) <= set(arguments)
    options = [f"--{name}={value}" for name, value in {**arguments, **here}.items()]
    return [sys.executable, "-m", "mlflow", "server", *options, *([f"--app-name={app}"] if app else [])]


@contextmanager
def mlflow_server(
    folder: Path,
    database: str,
    destination: str,
    environment: Mapping[str, str],
    port: int | None = None,
    app: str | None = None,
) -> Iterator[str]:
    """A server for the length of the block.

    Args:
        folder: Its working folder, where its log is written.
        database: URI of its database.
        destination: Where it keeps artifacts.
        environment: Variables of the server alone, e.g. the keys of the bucket.
        port: Where it listens, by default at a free port.
        app: `basic-auth` for one that asks for a password.

    Yields:
        Its address.
    """
    port = port or free_port()
    uri = f"http://127.0.0.1:{port}"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_"))}
    own = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command(port, destination, app),
            cwd=folder,
            env={**inherited, **own, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                    break
                except (urllib.error.URLError, OSError):
                    assert process.poll() is None, "the server ended"
                    time.sleep(0.2)
            yield uri
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:  # a test that failed half-way through a large file
                process.kill()
                process.wait()
