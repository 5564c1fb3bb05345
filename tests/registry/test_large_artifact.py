"""An SAE of one gigabyte goes through a real server to S3 and back, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from plmsae.artifacts.checksums import sha256_file
from plmsae.artifacts.manifest import Manifest, list_files, read_manifest, write_manifest
from plmsae.registry.connection import connect
from plmsae.registry.versions import get_version
from plmsae.saes import save
from tests.registry.outputs import small_sae, write_outputs
from tests.registry.server import mlflow_server
from tests.registry.test_promote import NAME
from tests.s3server import S3Server

DICTIONARY_SIZE = 500_000  # x 256 x 2 matrices x 4 bytes: 1.02 GB
MIB = 1 << 20
LEAST_BYTES = 10**9

# Registers or pulls, and prints the peak of its memory in MiB.
_CLIENT = """
import re, sys
from pathlib import Path
from plmsae.artifacts.manifest import read_manifest
from plmsae.registry.evidence import Evidence
from plmsae.registry.load import pull
from plmsae.registry.register import register
root, what, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if what == "register":
    folders = dict(item.split("=") for item in sys.argv[4:])
    folders = {port: Path(folder) for port, folder in folders.items()}
    register(Evidence(folders, {port: read_manifest(folder) for port, folder in folders.items()}), root)
else:
    pull(f"models:/{name}/1", root / "pulled")
# Not `ru_maxrss`: a child starts with its parent's.
print(int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@contextmanager
def peak_memory(parent: int) -> Iterator[list[int]]:
    """The highest sum of private memory of a process and its children during the block, in MiB (only one element)."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            total = 0
            for process in [psutil.Process(parent), *psutil.Process(parent).children(recursive=True)]:
                try:
                    total += process.memory_info().rss - process.memory_info().shared
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total // MIB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def client(root: Path, *arguments: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, str(root), *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_an_sae_of_a_gigabyte_goes_through(
    s3_server: S3Server, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = write_outputs(root)
    save(small_sae(dictionary_size=DICTIONARY_SIZE), evidence.sae_folder)
    folder = evidence.folders["sae"]
    manifest = read_manifest(folder)
    write_manifest(folder, Manifest(**{**manifest.model_dump(), "files": list_files(folder)}))
    weights = evidence.sae_folder / "sae.safetensors"
    assert weights.stat().st_size > LEAST_BYTES

    bucket = s3_server.bucket()
    database = f"sqlite:///{root}/.plmsae/mlflow/mlflow.db"
    with mlflow_server(tmp_path, database, f"s3://{bucket}/artifacts", s3_server.env) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        (server,) = [child for child in psutil.Process().children() if "mlflow" in child.cmdline()]
        with peak_memory(server.pid) as during_upload:
            ports = [f"{port}={folder}" for port, folder in evidence.folders.items()]
            uploading = client(root, "register", NAME, *ports)
        with peak_memory(server.pid) as during_download:
            downloading = client(root, "pull", NAME)
        with connect(root) as connected:
            assert get_version(connected, NAME, 1).tags["dictionary_size"] == str(DICTIONARY_SIZE)
    print(
        f"peak MiB: register {uploading}, pull {downloading}; "
        f"server {during_upload[0]} uploading, {during_download[0]} downloading"
    )
    pulled = root / "pulled" / "sae.safetensors"
    assert sha256_file(pulled) == sha256_file(weights)
    size = weights.stat().st_size // MIB
    assert uploading < 300 + 2 * size  # the weights, checked in memory, and the file that they are mapped from
    assert downloading < 400 + 0.25 * size
    assert max(during_upload[0], during_download[0]) < 700 + 0.5 * size
