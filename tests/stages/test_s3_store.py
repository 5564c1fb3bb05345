"""`extract_activations.store: s3://...` through the command line, and a training that streams from it.

A real server process over http; the disk is watched while the training runs.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import lightning  # noqa: F401  (as every manifest names what was imported, whichever test runs first)
import numpy as np
import pandas as pd
import pytest
import yaml

from plmsae.artifacts.manifest import Manifest, list_files, verify, write_manifest
from plmsae.artifacts.s3 import S3
from plmsae.cli import main
from plmsae.errors import TryAgainError
from tests.s3server import S3Server, start
from tests.workspace import FIXTURE

CAP_MIB = 1
PARAMS = {
    "extract_activations": {
        "layer": 2,
        "dtype": "float32",
        "block_rows": 128,
        "max_tokens_per_batch": 2048,
        "shuffle_pool_rows": 3000,
        "threads": 1,
        "store": None,
    },
    "ingest": {},
    "train_sae": {
        "expansion_factor": 2,
        "k": 8,
        "tokens": 30_000,
        "batch_size": 512,
        "learning_rate": 0.002,
        "warmup_steps": 5,
        "validate_every": 20,
        "num_valid_rows": 1024,
        "checkpoint_every": 20,
        "threads": 1,
        "cache_mib": CAP_MIB,
    },
}


def write_output(folder: Path, stage: str, kind: str) -> None:
    manifest = Manifest(
        stage=stage, kind=kind, params={}, inputs={}, source_files={}, environment={}, files=list_files(folder)
    )
    write_manifest(folder, manifest)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose activations take several times the cap of the cache."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(150, 300, 50).astype(np.int32)
    ingest, report = tmp_path / "outputs" / "ingest", tmp_path / "outputs" / "validate"
    ingest.mkdir(parents=True)
    pd.DataFrame(
        {
            "offset": 0,
            "accession": [f"P{i:05d}" for i in range(50)],
            "sequence": ["".join(generator.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths],
            "length": lengths,
            "split": ["train"] * 36 + ["valid"] * 8 + ["test"] * 6,
        }
    ).to_parquet(ingest / "sequences.parquet")
    write_output(ingest, "ingest", "sequences")
    report.mkdir()
    (report / "results.json").write_text("{}")
    write_output(report, "validate", "report")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def run(stage: str, *settings: str, output: str | None = None) -> int:
    arguments = ["run", stage]
    for setting in settings:
        arguments += ["--set", setting]
    return main([*arguments, *(["--output", output] if output else [])])


class Watch:
    """The largest size that the cache and the chunks on this disk ever had, sampled all the time."""

    def __init__(self, root: Path) -> None:
        self.root, self.cache, self.chunks, self.samples = root, 0, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.is_set():
            try:
                self.cache = max(self.cache, sum(p.stat().st_size for p in self.root.glob(".plmsae/*/*/blocks/*")))
                self.chunks = max(self.chunks, sum(p.stat().st_size for p in self.root.rglob("*.bin")))
                self.samples += 1
            except FileNotFoundError:  # gone between the listing and the look
                continue
            time.sleep(0.001)


def result(root: Path) -> dict[str, bytes]:
    folder = root / "outputs" / "train_sae"
    return {name: (folder / name).read_bytes() for name in ("sae/sae.safetensors", "curves.csv", "density.csv")}


@pytest.mark.slow
def test_from_proteins_to_an_sae_through_a_bucket(root: Path, s3: S3Server, monkeypatch, capsys) -> None:
    assert run("extract_activations") == 0
    total = sum(p.stat().st_size for p in (root / "outputs" / "extract_activations").rglob("*.bin"))
    largest_part = 3300 * 256 * 4
    assert total > 4 * CAP_MIB * 2**20
    assert run("train_sae") == 0
    local, metrics = result(root), json.loads((root / "outputs/extract_activations/metrics.json").read_text())

    bucket = s3.bucket()
    shutil.rmtree(root / "outputs" / "extract_activations")
    with Watch(root) as watch:
        assert run("extract_activations", f"extract_activations.store=s3://{bucket}/stores") == 0
    output = root / "outputs" / "extract_activations"
    assert 0 < watch.chunks <= largest_part  # one part at a time
    assert not list(root.rglob("*.bin"))
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert verify(output).params["store"] == f"s3://{bucket}/stores"
    stored = sum(len(data) for key, data in s3.objects(bucket).items() if key.endswith(".bin"))
    assert stored == total

    with Watch(root) as watch:
        assert run("train_sae") == 0
    assert watch.samples > 20
    assert 0.4 * CAP_MIB * 2**20 < watch.cache <= CAP_MIB * 2**20 < total / 4
    assert watch.chunks == 0
    assert result(root) == local
    assert not any((root / ".plmsae" / "checkpoints").iterdir())
    assert s3.secret_key not in "".join(p.read_text(errors="ignore") for p in output.rglob("*") if p.is_file())

    # A training that lost its store goes on from its checkpoint and the blocks it has, and ends with the same bytes.
    with monkeypatch.context() as patch:
        get = S3.get

        def fail_late(self: S3, *arguments: object) -> bytes:
            if list(root.glob(".plmsae/checkpoints/*/step-*")):
                raise TryAgainError("gone")
            return get(self, *arguments)  # type: ignore[arg-type]

        patch.setattr(S3, "get", fail_late)
        assert run("train_sae") == 75
    assert list(root.glob(".plmsae/checkpoints/*/blocks/*"))
    capsys.readouterr()
    assert run("train_sae") == 0
    assert "resumes after step" in capsys.readouterr().err
    assert result(root) == local


@pytest.fixture
def strict(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Server, str]]:
    """A server that enforces permissions, seen by a user who may only read; and the bucket."""
    with start(enforced=True) as server:
        bucket = server.bucket()
        reader = server.user(bucket, "s3:GetObject", "s3:ListBucket")
        server.enforce()
        for name, value in reader.env.items():
            monkeypatch.setenv(name, value)
        yield reader, bucket


def test_a_bucket_without_permission(root: Path, strict: tuple[S3Server, str], capsys) -> None:
    reader, bucket = strict
    assert run("extract_activations", f"extract_activations.store=s3://{bucket}/stores") == 2
    said = capsys.readouterr().err
    assert f"no permission to write 's3://{bucket}/stores/" in said
    assert "s3:PutObject" in said
    assert "Traceback" not in said
    assert reader.secret_key not in said
    assert not (root / "outputs" / "extract_activations").exists()


def test_a_server_that_stops_while_training_and_is_not_there_afterwards(
    root: Path, s3: S3Server, monkeypatch, capsys
) -> None:
    def stop_after_a_checkpoint() -> None:
        while not list(root.glob(".plmsae/checkpoints/*/step-*")):
            time.sleep(0.01)
        stack.close()

    with ExitStack() as stack:
        server = stack.enter_context(start())
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        store = f"extract_activations.store=s3://{server.bucket()}"
        assert run("extract_activations", store) == 0
        stopper = threading.Thread(target=stop_after_a_checkpoint)
        stopper.start()
        for stage in ("train_sae", "train_sae", "extract_activations"):  # it stops in the first of them
            began = time.monotonic()
            capsys.readouterr()
            assert run(stage, store) == 75
            said = capsys.readouterr().err
            assert f"the S3 store at '{server.url}' cannot be reached" in said
            assert "Traceback" not in said
            assert time.monotonic() - began < 20
        stopper.join()
    assert list(root.glob(".plmsae/checkpoints/*/step-*"))


def test_a_damaged_object_is_named_and_only_its_part_made_again(root: Path, s3: S3Server, capsys) -> None:
    bucket, client = s3.bucket(), s3.client()
    store = f"extract_activations.store=s3://{bucket}"
    assert run("extract_activations", store) == 0
    manifest = (root / "outputs" / "extract_activations" / "manifest.json").read_bytes()
    key, data = next((key, data) for key, data in s3.objects(bucket).items() if key.endswith(".bin"))
    metadata = client.head_object(Bucket=bucket, Key=key)["Metadata"]
    client.put_object(Bucket=bucket, Key=key, Body=bytes(len(data)), Metadata=metadata)
    folder = str(root / "outputs" / "extract_activations")
    assert main(["verify", folder]) == 0  # there, and of its size
    assert f"chunks in s3://{bucket}/" in capsys.readouterr().out
    assert main(["verify", folder, "--contents"]) == 3
    assert f"chunk '{key.rpartition('/')[2]}' is corrupted" in capsys.readouterr().err
    for stage in ("train_sae", "extract_activations"):
        capsys.readouterr()
        assert run(stage, store) == 3
        said = capsys.readouterr().err
        assert f"chunk '{key.rpartition('/')[2]}' is corrupted" in said
        assert f"s3://{bucket}/{key}" in said
    client.delete_object(Bucket=bucket, Key=key)
    assert main(["verify", folder]) == 3
    assert f"s3://{bucket}/{key}" in capsys.readouterr().err
    assert run("train_sae") == 3
    assert f"chunk '{key.rpartition('/')[2]}' is missing" in capsys.readouterr().err
    assert run("extract_activations", store) == 0
    assert s3.objects(bucket)[key] == data
    assert (root / "outputs" / "extract_activations" / "manifest.json").read_bytes() == manifest


def test_proteins_from_a_bucket(root: Path, s3: S3Server, capsys) -> None:
    bucket = s3.bucket()
    s3.client().put_object(Bucket=bucket, Key="raw/tiny.tsv.gz", Body=FIXTURE.read_bytes())
    made = []
    for source in (str(FIXTURE), f"s3://{bucket}/raw/tiny.tsv.gz"):
        assert run("ingest", f"ingest.source={source}", "ingest.cluster_method=linclust") == 0
        made.append((root / "outputs" / "ingest" / "sequences.parquet").read_bytes())
    assert made[0] == made[1]
    capsys.readouterr()
    assert run("ingest", f"ingest.source=s3://{bucket}/raw/other.tsv.gz") == 2
    assert f"object 's3://{bucket}/raw/other.tsv.gz' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", ["gs://bucket/a", "/data/store", "s3://", "s3:///a", "s3://key:secret@host/bucket", "7"]
)
def test_what_is_no_address_is_refused(root: Path, value: str, capsys) -> None:
    assert run("extract_activations", f"extract_activations.store={value}") == 2
    assert "extract_activations.store" in capsys.readouterr().err


def test_an_extraction_on_an_empty_disk_takes_over_what_is_in_the_bucket(root: Path, s3: S3Server, capsys) -> None:
    bucket = s3.bucket()
    assert run("extract_activations", f"extract_activations.store=s3://{bucket}") == 0
    manifest = (root / "outputs" / "extract_activations" / "manifest.json").read_bytes()
    shutil.rmtree(root / ".plmsae")
    shutil.rmtree(root / "outputs" / "extract_activations")
    capsys.readouterr()
    assert run("extract_activations", f"extract_activations.store=s3://{bucket}") == 0
    assert "residues_per_s=0 " in capsys.readouterr().err  # nothing was computed again
    assert (root / "outputs" / "extract_activations" / "manifest.json").read_bytes() == manifest
