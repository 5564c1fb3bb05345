from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.conftest import Dvc
from tests.s3server import S3Server


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_same_hashes_go_to_s3_and_come_back(checkout: Path, dvc: Dvc, s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    keys = {name: value for name, value in s3_server.env.items() if name != "AWS_ENDPOINT_URL"}
    dvc("remote", "add", "s3", f"s3://{bucket}/dvc")
    dvc("remote", "modify", "s3", "endpointurl", s3_server.url)

    dvc("pull", "data.dvc")
    original, pointer = contents(checkout / "data"), (checkout / "data.dvc").read_bytes()
    dvc("push", "-r", "s3", "data.dvc", **keys)
    pushed = contents(checkout / "demo" / "dvc-remote")
    assert s3_server.objects(bucket) == {f"dvc/{name}": data for name, data in pushed.items()}

    for folder in ("data", ".dvc/cache", "demo"):
        shutil.rmtree(checkout / folder)
    dvc("pull", "-r", "s3", "data.dvc", **keys)
    assert contents(checkout / "data") == original
    assert (checkout / "data.dvc").read_bytes() == pointer
    assert s3_server.secret_key not in (checkout / ".dvc" / "config").read_text()
