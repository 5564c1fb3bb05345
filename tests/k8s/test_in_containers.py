"""The containers of the registry as the manifests declare them: our image, locked down, with a bucket on S3."""

from __future__ import annotations

import gzip
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plmsae.registry.connection import connect
from plmsae.registry.gates import Gates
from plmsae.registry.promote import promote
from plmsae.registry.register import register
from plmsae.registry.versions import aliases_of
from tests.commands.test_reevaluate import CHAMPION, NO_TOLERANCES, champion, evidence
from tests.containers.conftest import image, podman
from tests.containers.marks import CONTAINERS
from tests.containers.podman import Podman
from tests.k8s.manifests import K8S, documents, load
from tests.pipeline.conftest import Finished, finished
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import FIDELITY, write_outputs
from tests.s3server import S3Server, free_port
from tests.workspace import FIXTURE

__all__ = ["empty_registry", "finished", "image", "podman", "root"]

pytestmark = CONTAINERS


def value(item: dict[str, Any]) -> str:
    """What the kubelet would put into the environment; secrets have the values of the examples."""
    if "value" in item:
        return str(item["value"])
    for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if reference := item["valueFrom"].get(field):
            (found,) = [
                document.data
                for document in documents()
                if (document.data["kind"], document.data["metadata"].get("name")) == (kind, reference["name"])
            ]
            return str((found.get("data") or found["stringData"])[reference["key"]])
    raise AssertionError(item)


def options(
    pod: dict[str, Any], environment: Mapping[str, str], folders: Mapping[str, Path] | None = None
) -> list[str]:
    """The options of podman for the only container of a pod; `folders` are those of its volumes that hold something."""
    (container,) = pod["containers"]
    security = {**pod["securityContext"], **container["securityContext"]}
    found = [f"--user={security['runAsUser']}:{security['runAsGroup']}", "--network=host", "--read-only"]
    found += ["--read-only-tmpfs=false"]  # podman would add a writable /tmp, /run and /var/tmp of its own
    found += [f"--cap-drop={name}" for name in security["capabilities"]["drop"]]
    if not security["allowPrivilegeEscalation"]:
        found.append("--security-opt=no-new-privileges")
    found.append(f"--memory={container['resources']['limits']['memory'].replace('Gi', 'g')}")
    empty = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    for mount in container["volumeMounts"]:
        if mount["name"] in empty:
            found.append(f"--tmpfs={mount['mountPath']}:rw,mode=1777")
        else:
            mode = "ro" if mount.get("readOnly") else "rw"
            found.append(f"--volume={(folders or {})[mount['name']]}:{mount['mountPath']}:{mode}")
    variables = {item["name"]: value(item) for item in container.get("env", ())}
    assert set(environment) <= set(variables)
    return found + [f"--env={name}={text}" for name, text in {**variables, **environment}.items()]


@contextmanager
def registry(podman: Podman, image: str, s3_server: S3Server, bucket: str) -> Iterator[str]:
    """The MLflow server of the manifests, with artifacts in a bucket; yields its address."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    pod = load(K8S / "base" / "mlflow.yaml")[1]["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    changed = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--artifacts-destination": f"s3://{bucket}/artifacts",
        "--workers": "1",
    }
    arguments = [
        f"{name}={changed.get(name, text)}" for name, _, text in (item.partition("=") for item in server["args"])
    ]
    environment = {"MLFLOW_BACKEND_STORE_URI": "sqlite:////tmp/mlflow.db", "AWS_ENDPOINT_URL": s3_server.url}
    started = podman("run", "--detach", *options(pod, environment), image, *server["command"], *arguments)
    container = started.stdout.strip()
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(uri + server["startupProbe"]["httpGet"]["path"], timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, podman("logs", container, check=False)
                time.sleep(0.3)
        yield uri
    finally:
        podman("rm", "--force", "--time", "5", container, check=False)


def test_the_server_and_the_rollback_run_as_declared(
    podman: Podman, image: str, s3_server: S3Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.bucket()
    with registry(podman, image, s3_server, bucket) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        first = register(write_outputs(root), root)
        assert promote(first.name, first.version, Gates(), root).promoted
        better = register(write_outputs(root, seed=1, fidelity={**FIDELITY, "fvu": 0.25}), root)
        assert promote(better.name, better.version, Gates(), root).promoted
        assert len([key for key in s3_server.objects(bucket) if key.endswith("sae.safetensors")]) == 2

        (job,) = load(K8S / "examples" / "rollback-job.example.yaml")
        pod = job["spec"]["template"]["spec"]
        (rollback,) = pod["containers"]
        command = [*rollback["command"], first.name, *rollback["args"][1:]]
        answer = podman("run", "--rm", *options(pod, {"MLFLOW_TRACKING_URI": uri}), image, *command)
        assert json.loads(answer.stdout)["to_version"] == first.version
        with connect(root) as client:
            assert aliases_of(client, first.name)["champion"] == first.version


def test_the_job_by_the_clock_evaluates_what_has_changed(
    podman: Podman,
    image: str,
    s3_server: S3Server,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As user 10001 on a read-only root: nothing at first, then all of it on newer data; its volume keeps the data."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    made = finished.copy_to(tmp_path / "made")
    monkeypatch.chdir(made)
    (cron,) = [item for item in load(K8S / "components" / "schedules" / "reevaluate.yaml") if item["kind"] == "CronJob"]
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (job,) = pod["containers"]
    workspace, params = tmp_path / "workspace", tmp_path / "params"
    for folder in (workspace, params):
        folder.mkdir()
        folder.chmod(0o777)  # as the kubelet does for the group of the pod
    shutil.copy(made / "params.yaml", params)
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    bucket = s3_server.bucket()
    client = s3_server.client()
    client.upload_file(str(FIXTURE), bucket, "newest.tsv.gz")
    with registry(podman, image, s3_server, bucket) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        number = champion(made, evidence(made))
        environment = {**s3_server.env, "MLFLOW_TRACKING_URI": uri, "PLMSAE_WEBHOOK": ""}
        flags = options(pod, environment, {"workspace": workspace, "params": params})
        rest = [*job["args"][2:], *NO_TOLERANCES]
        command = [*job["command"], CHAMPION, f"--data=s3://{bucket}/newest.tsv.gz", *rest]

        def run() -> dict[str, Any]:
            answer = podman("run", "--rm", f"--workdir={job['workingDir']}", *flags, image, *command, timeout=900)
            found: dict[str, Any] = json.loads(answer.stdout)
            assert (found["version"], found["verdict"]) == (number, "fine")
            return found

        assert run()["evaluated"] == []
        lines = gzip.decompress(FIXTURE.read_bytes()).splitlines(keepends=True)
        client.put_object(Bucket=bucket, Key="newest.tsv.gz", Body=gzip.compress(b"".join(lines[:-3]), mtime=0))
        second = run()
        assert second["evaluated"] == ["concepts", "fidelity"]
        assert {cause for causes in second["causes"].values() for cause in causes} == {"data"}
        assert run()["evaluated"] == []
        assert [path for path in (workspace / ".plmsae" / "sources").rglob("*") if path.is_file()]
        assert {item["number"] for item in (second, run())} == {1}
