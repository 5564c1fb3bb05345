from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.data.conftest import Dvc

KEYS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def s3_url() -> Iterator[str]:
    """A real S3 server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_same_hashes_go_to_s3_and_come_back(checkout: Path, dvc: Dvc, s3_url: str) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3_url,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket="plmsae-data")
    dvc("remote", "add", "s3", "s3://plmsae-data/dvc")
    dvc("remote", "modify", "s3", "endpointurl", s3_url)

    dvc("pull", "data.dvc")
    original, pointer = contents(checkout / "data"), (checkout / "data.dvc").read_bytes()
    dvc("push", "-r", "s3", "data.dvc", **KEYS)
    keys = {item["Key"] for item in client.list_objects_v2(Bucket="plmsae-data")["Contents"]}
    assert keys == {f"dvc/{name}" for name in contents(checkout / "demo" / "dvc-remote")}

    for folder in ("data", ".dvc/cache", "demo"):
        shutil.rmtree(checkout / folder)
    dvc("pull", "-r", "s3", "data.dvc", **KEYS)
    assert contents(checkout / "data") == original
    assert (checkout / "data.dvc").read_bytes() == pointer
    assert "demo-secret" not in (checkout / ".dvc" / "config").read_text()
