"""Several workers, as processes of their own: shares that make one store, and writers that meet."""

from __future__ import annotations

import json
import multiprocessing
import signal
from pathlib import Path

import pandas as pd
import pytest

from plmsae.activations.extract import extract
from plmsae.activations.places import store_at
from plmsae.activations.upload import publish
from plmsae.artifacts.s3 import S3Uri
from plmsae.errors import UserError
from plmsae.plms import load_plm
from plmsae.plms.base import Place
from tests.activations.conftest import write_model
from tests.activations.test_extract import SETTINGS, SHA256, contents

ALSO = [Place(2, "mlp")]
PROCESSES = multiprocessing.get_context("fork")  # spawned ones would import PyTorch for seconds


class Worker:
    """An extraction in a process of its own; tells each part that it computed."""

    def __init__(self, root: Path, output: str, checkpoints: str, share: tuple[int, int] | None, store: str | None):
        self.pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=work, args=(theirs, root, output, checkpoints, share, store))
        self.process.start()
        theirs.close()
        assert self.pipe.recv() == "ready"

    def go(self) -> None:
        self.pipe.send("go")

    def told(self) -> list[str]:
        """What it has told up to its end."""
        names = []
        try:
            while True:
                names.append(self.pipe.recv())
        except EOFError:
            self.process.join(60)
            self.pipe.close()
            return names


def work(pipe, root, output, checkpoints, share, store):
    plm, sequences = load_plm("lm", root=root), pd.read_parquet(root / "sequences.parquet")
    pipe.send("ready")
    pipe.recv()
    extract(
        plm,
        sequences,
        root / output,
        root / checkpoints,
        SETTINGS,
        sequences_sha256=SHA256,
        also=ALSO,
        share=share,
        store=S3Uri.parse(store) if store else None,
        resume_key="k" * 32,
        on_part=lambda part: pipe.send(part.name),
    )


def finish(*workers: Worker) -> list[list[str]]:
    """Let all begin at once and go to their end."""
    for worker in workers:
        worker.go()
    computed = [worker.told() for worker in workers]
    assert [worker.process.exitcode for worker in workers] == [0] * len(workers)
    return computed


@pytest.fixture(scope="module")
def root(sequences, tmp_path_factory):
    """A folder with a model, sequences and the store that one worker makes."""
    folder = tmp_path_factory.mktemp("workers")
    write_model(folder / "lm")
    sequences.to_parquet(folder / "sequences.parquet")
    names = []
    extract(
        load_plm("lm", root=folder),
        sequences,
        folder / "alone",
        folder / "own",
        SETTINGS,
        sequences_sha256=SHA256,
        also=ALSO,
        on_part=lambda part: names.append(part.name),
    )
    (folder / "names.json").write_text(json.dumps(names))
    return folder


@pytest.fixture
def names(root):
    return json.loads((root / "names.json").read_text())


def merge(root, output, checkpoints, **more):
    computed = []
    plm, sequences = load_plm("lm", root=root), pd.read_parquet(root / "sequences.parquet")
    extract(
        plm,
        sequences,
        root / output,
        root / checkpoints,
        SETTINGS,
        sequences_sha256=SHA256,
        also=ALSO,
        resume_key="k" * 32,
        on_part=lambda part: computed.append(part.name),
        **more,
    )
    return computed


def test_shares_make_the_store_of_a_single_worker(root, names):
    computed = finish(*(Worker(root, f"share{i}", "shared", (i, 3), None) for i in (1, 2, 3)))
    assert computed == [names[0::3], names[1::3], names[2::3]]
    assert merge(root, "merged", "shared") == []
    assert contents(root / "merged") == contents(root / "alone")
    record = json.loads((root / "share2" / "share.json").read_text())
    assert record["share"] == [2, 3]
    assert [sorted(parts) for parts in record["parts"].values()] == [sorted(names[1::3])] * 2
    with pytest.raises(UserError, match="a share of an extraction, not an activation store"):
        store_at(root / "share2")


def test_a_killed_worker_goes_on_and_a_missing_share_is_made_by_the_merge(root, names):
    killed = Worker(root, "a1", "killed", (1, 2), None)
    killed.go()
    assert killed.pipe.recv() == names[0]
    killed.process.kill()
    finished = {names[0], *killed.told()}
    assert killed.process.exitcode == -signal.SIGKILL
    again, other = finish(Worker(root, "a1", "killed", (1, 2), None), Worker(root, "a2", "killed", (2, 2), None))
    assert not finished & {*again, *other}
    assert merge(root, "after-kill", "killed") == []
    assert contents(root / "after-kill") == contents(root / "alone")
    assert merge(root, "without-workers", "nobody") == names


def test_writers_that_meet_in_one_folder_share_the_work(root, names):
    computed = finish(*(Worker(root, f"full{i}", "met", None, None) for i in (1, 2)))
    assert sorted(computed[0] + computed[1]) == sorted(names)  # each part once
    for i in (1, 2):
        assert contents(root / f"full{i}") == contents(root / "alone")


def test_writers_that_meet_in_one_bucket_leave_one_store(root, names, s3):
    store = f"s3://{s3.bucket()}/stores"
    finish(*(Worker(root, f"bucket{i}", f"disk{i}", None, store) for i in (1, 2)))
    assert contents(root / "bucket1") == contents(root / "bucket2")
    objects = s3.objects(S3Uri.parse(store).bucket)
    for place in ("layer1.residual", "layer2.mlp"):
        publish(root / "bucket1" / place)
        bytes_here = sorted(data for name, data in contents(root / "alone" / place).items() if name.endswith(".bin"))
        location = S3Uri.parse(json.loads((root / "bucket1" / place / "store.json").read_text())["location"])
        there = sorted(data for key, data in objects.items() if key.startswith(location.key) and key.endswith(".bin"))
        assert there == bytes_here


def test_shares_in_a_bucket(root, names, s3):
    store = f"s3://{s3.bucket()}/stores"
    workers = [Worker(root, f"node{i}", f"node-disk{i}", (i, 2), store) for i in (1, 2)]
    assert finish(*workers) == [names[0::2], names[1::2]]
    assert merge(root, "from-bucket", "fresh", store=S3Uri.parse(store)) == []
    single = f"s3://{s3.bucket()}/stores"
    merge(root, "one-node", "single", store=S3Uri.parse(single))

    def without_address(folder):
        return {
            name: data.replace(S3Uri.parse(single).bucket.encode(), S3Uri.parse(store).bucket.encode())
            if name.endswith("store.json")
            else data
            for name, data in contents(folder).items()
        }

    assert contents(root / "from-bucket") == without_address(root / "one-node")
