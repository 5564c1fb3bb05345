"""A Kubeflow API, a container registry, and the training pipeline compiled for an image in that registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from plmsae.stages.components import EXAMPLE_IMAGE
from tests.cluster.kfp_server import KfpServer, kfp_server
from tests.cluster.oci_registry import Registry, oci_registry

ROOT = Path(__file__).parents[2]
SHA256 = 64 * "a"
# A cluster reads raw proteins from a bucket only, and must be told their checksum.
SOURCE = ("--set", "ingest.source=s3://proteins/swissprot.tsv.gz", "--set", f"ingest.source_sha256={SHA256}")


def committed(pipeline: str, image: str) -> str:
    """A pipeline as it is committed, for another image: what compiling gives, without the seconds (test_compile.py)."""
    return (ROOT / "pipelines" / f"{pipeline}.yaml").read_text(encoding="utf-8").replace(EXAMPLE_IMAGE, image)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KFP_HOST", "KFP_TOKEN", "PLMSAE_IMAGE", "PLMSAE_GPU_IMAGE", "SSL_CERT_FILE", "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kfp() -> Iterator[KfpServer]:
    with kfp_server() as server:
        yield server


@pytest.fixture(scope="session")
def shared_registry() -> Iterator[Registry]:
    with oci_registry() as registry:
        registry.push("lab/plmsae", "1.0")
        yield registry


@pytest.fixture
def registry(shared_registry: Registry) -> Iterator[Registry]:
    shared_registry.requests.clear()
    yield shared_registry
    shared_registry.access = "open"


@pytest.fixture(scope="session")
def image(shared_registry: Registry) -> str:
    return f"{shared_registry.host}/lab/plmsae@{shared_registry.images['lab/plmsae']['1.0']}"


@pytest.fixture(scope="session")
def package_file(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("package") / "train.yaml"
    file.write_text(committed("train", image), encoding="utf-8")
    return file
