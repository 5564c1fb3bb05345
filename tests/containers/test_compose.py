"""compose.yaml: no secret in it, nothing open to other machines, and its MLflow service works on a real S3 server."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.containers.compose import interpolate, load, run_options
from tests.containers.marks import CONTAINERS
from tests.containers.podman import Podman
from tests.s3server import S3Server, free_port
from tests.workspace import ROOT

FILE = ROOT / "docker" / "compose.yaml"
EXAMPLE = ROOT / "docker" / ".env.example"
KEYS = {
    "image", "command", "environment", "ports", "volumes", "depends_on", "healthcheck", "restart", "read_only",
    "cap_drop", "security_opt", "tmpfs",
}  # fmt: skip
SECRET = re.compile(r"KEY|SECRET|PASSWORD|TOKEN")


def example() -> dict[str, str]:
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_it_is_well_formed_and_every_name_in_it_exists() -> None:
    file = load(FILE)
    assert {key for key in file if not key.startswith("x-")} == {"name", "services", "volumes"}
    for name, service in file["services"].items():
        assert set(service) <= KEYS, name
        for mount in service.get("volumes", []):
            assert mount.partition(":")[0] in file["volumes"], f"{name}: only named volumes"
        for other, needs in service.get("depends_on", {}).items():
            once = file["services"][other]["restart"].startswith("on-failure")
            assert needs["condition"] == ("service_completed_successfully" if once else "service_healthy"), name
        assert "healthcheck" in service or service["restart"].startswith("on-failure"), name


def test_nothing_is_open_to_other_machines() -> None:
    for name, service in load(FILE)["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_images_are_by_digest_or_the_users_own() -> None:
    for service in load(FILE)["services"].values():
        assert re.search(r"@sha256:[0-9a-f]{64}$", service["image"]) or "${PLMSAE_IMAGE:?" in service["image"]


def test_there_are_no_default_secrets() -> None:
    file = load(FILE)
    for service in file["services"].values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
    assert set(example()) == set(re.findall(r"\$\{(\w+)", FILE.read_text(encoding="utf-8")))
    assert set(example().values()) == {""}
    with pytest.raises(LookupError, match=r"docker/\.env"):
        interpolate(file, example())
    for name in example():
        with pytest.raises(LookupError, match=r"docker/\.env"):
            interpolate(file, {key: "x" for key in example() if key != name})
    ignored = subprocess.run(["git", "check-ignore", "docker/.env"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0, "git must ignore the file with the secrets"


@pytest.fixture
def settings(image: str, s3_server: S3Server) -> dict[str, Any]:
    """The services with a user's settings, on this host's network."""
    variables = {
        "PLMSAE_IMAGE": image,
        "S3_ACCESS_KEY_ID": s3_server.access_key,
        "S3_SECRET_ACCESS_KEY": s3_server.secret_key,
    }
    services: dict[str, Any] = interpolate(load(FILE)["services"], variables)
    for service in services.values():
        if service["environment"].get("AWS_ENDPOINT_URL"):
            assert service["environment"]["AWS_ENDPOINT_URL"] == "http://s3:8333"
            service["environment"]["AWS_ENDPOINT_URL"] = s3_server.url
    return services


@pytest.fixture
def registry_volume(podman: Podman) -> Iterator[str]:
    name = f"plmsae-test-{uuid.uuid4().hex[:8]}"
    podman("volume", "create", name)
    yield name
    podman("volume", "rm", "--force", name, check=False)


@pytest.fixture
def up(podman: Podman, settings: dict[str, Any], registry_volume: str) -> Iterator[Callable[[], str]]:
    """Starts the MLflow service and returns its address; called again, it replaces the container."""
    name = f"plmsae-test-{uuid.uuid4().hex[:8]}"

    def start() -> str:
        podman("rm", "--force", "--ignore", name)
        service, port = settings["mlflow"], free_port()
        command = [f"--port={port}" if item == "--port=5000" else item for item in service["command"]]
        command = ["--host=127.0.0.1" if item == "--host=0.0.0.0" else item for item in command]
        options = run_options(service, {"registry": registry_volume})
        podman("run", "--detach", "--name", name, "--network", "host", *options, service["image"], *command)
        healthcheck = [item.replace(":5000", f":{port}") for item in service["healthcheck"]["test"]]
        assert healthcheck[0] == "CMD"
        deadline = time.monotonic() + 120
        while podman("exec", name, *healthcheck[1:], check=False).returncode != 0:
            assert time.monotonic() < deadline, podman("logs", name, check=False).stderr[-3000:]
            time.sleep(0.5)
        return f"http://127.0.0.1:{port}"

    yield start
    podman("rm", "--force", "--ignore", name)


def _bucket_service(podman: Podman, settings: dict[str, Any]) -> None:
    service = settings["buckets"]
    podman("run", "--rm", "--network", "host", *run_options(service, {}), service["image"], *service["command"])


CLIENT = """
import sys
import mlflow
client = mlflow.MlflowClient()
if sys.argv[1] == "write":
    run = client.create_run(client.create_experiment("compose"))
    client.log_metric(run.info.run_id, "fvu", 0.25)
    client.log_text(run.info.run_id, "weights", "sae/note.txt")
else:
    (run,) = client.search_runs([client.get_experiment_by_name("compose").experiment_id])
    path = client.download_artifacts(run.info.run_id, "sae/note.txt")
    print(run.data.metrics["fvu"], open(path).read())
"""


def _client(uri: str, verb: str) -> str:
    """An MLflow client without any key of the object store."""
    process = subprocess.run(
        [sys.executable, "-c", CLIENT, verb],
        env={"MLFLOW_TRACKING_URI": uri, "PATH": "/usr/bin:/bin", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


class TestServices:
    pytestmark = CONTAINERS

    def test_artifacts_go_to_the_bucket_and_survive_the_container(
        self, podman: Podman, settings: dict[str, Any], s3_server: S3Server, up: Callable[[], str]
    ) -> None:
        _bucket_service(podman, settings)
        _bucket_service(podman, settings)
        buckets = {bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]}
        assert {"mlflow", "plmsae"} <= buckets
        _client(up(), "write")
        stored = s3_server.objects("mlflow")
        assert [body for key, body in stored.items() if key.endswith("sae/note.txt")] == [b"weights"]
        assert _client(up(), "read") == "0.25 weights"

    def test_a_foreign_host_name_is_refused(
        self, podman: Podman, settings: dict[str, Any], up: Callable[[], str]
    ) -> None:
        _bucket_service(podman, settings)
        address = f"{up()}/api/2.0/mlflow/experiments/search?max_results=1"
        urllib.request.urlopen(address, timeout=10).close()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example.org"}), timeout=10)
