"""A real S3 server (moto) in a process of its own, for every test that needs one.

`s3_server` is a session fixture (imported by `tests/conftest.py`) of one open server: take a bucket of your own with
`S3Server.bucket`, and put `S3Server.env` into the environment of the code under test. `start(enforced=True)` gives a
server that checks credentials and permissions.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

REGION = "us-east-1"
# Calls that a server which enforces permissions answers before it does: those of `S3Server.user`.
_SETUP_CALLS = 10_000


@dataclass(frozen=True)
class S3Server:
    """A running server: its http endpoint, and the environment variables with which a program uses it."""

    url: str
    access_key: str = "demo"
    secret_key: str = "demo-secret"

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self, service: str = "s3") -> Any:
        import boto3

        return boto3.client(
            service,
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
        )

    def bucket(self, name: str | None = None) -> str:
        """Make a bucket, by default of a new name."""
        name = name or f"b-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def objects(self, bucket: str) -> dict[str, bytes]:
        """Key -> bytes of everything in a bucket."""
        client = self.client()
        keys = [
            item["Key"]
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            for item in page.get("Contents", ())
        ]
        return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def user(self, bucket: str, *actions: str) -> S3Server:
        """The server as a new user sees it who may do `actions` (`s3:GetObject`, ...) with a bucket."""
        iam, name = self.client("iam"), f"u-{uuid.uuid4().hex[:8]}"
        iam.create_user(UserName=name)
        arn = f"arn:aws:s3:::{bucket}"
        statement = {"Effect": "Allow", "Action": list(actions), "Resource": [arn, f"{arn}/*"]}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return S3Server(self.url, key["AccessKeyId"], key["SecretAccessKey"])

    def enforce(self) -> None:
        """From now on check credentials and permissions (a server of `start(enforced=True)`)."""
        request = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def start(*, enforced: bool = False, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server for the length of the block."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    if enforced:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(_SETUP_CALLS)
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the S3 server did not start"
            time.sleep(0.1)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One open server for the whole session."""
    with start() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The session's server, with this process's environment pointing at it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    return s3_server
