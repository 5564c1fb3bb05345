"""Stores in a bucket: the same bytes as on a disk, never a copy of it here, and what is broken is named.

Against a real server process over http.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plmsae.activations import remote
from plmsae.activations.block_table import read_table
from plmsae.activations.blocks import BlockStore
from plmsae.activations.cache import BlockCache
from plmsae.activations.check import check_store
from plmsae.activations.extract import extract
from plmsae.activations.metadata import read_metadata
from plmsae.activations.plan import Settings
from plmsae.activations.reader import ActivationReader
from plmsae.activations.upload import publish
from plmsae.artifacts.s3 import S3, S3Uri
from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.plms import load_plm
from tests.activations.conftest import huge_tryptophan, write_model
from tests.s3server import S3Server, free_port

SETTINGS = Settings(layer=1, block_rows=64, max_tokens_per_batch=256, shuffle_pool_rows=500, seed=3)
SHA256 = "5" * 64


def run(plm, sequences, folder: Path, store: str | None, name: str = "out", **more: Any) -> Path:
    output = folder / name
    extract(
        plm,
        sequences,
        output,
        folder / "checkpoints",
        SETTINGS,
        sequences_sha256=SHA256,
        store=S3Uri.parse(store) if store else None,
        **more,
    )
    return output


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def chunks_in(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {key: data for key, data in objects.items() if key.endswith(".bin")}


@pytest.fixture(scope="module")
def local(plm, sequences, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return run(plm, sequences, tmp_path_factory.mktemp("local"), None)


@pytest.fixture(scope="module")
def stored(plm, sequences, s3_server: S3Server, tmp_path_factory) -> tuple[Path, str]:
    """The store in a bucket: its folder here, and the bucket."""
    torch.set_num_threads(1)
    bucket, folder = s3_server.bucket(), tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        output = run(plm, sequences, folder, f"s3://{bucket}/team/stores")
        publish(output)
    return output, bucket


def copy_of(stored: tuple[Path, str], s3: S3Server, folder: Path) -> tuple[Path, str, str]:
    """A store of one's own to damage: its folder, the bucket, and the prefix of the store."""
    bucket = s3.bucket()
    for key, data in s3.objects(stored[1]).items():
        s3.client().put_object(Bucket=bucket, Key=key, Body=data)
    folder.mkdir()
    for name, data in files(stored[0]).items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.replace(stored[1].encode(), bucket.encode()) if name == "store.json" else data)
    location = read_metadata(folder).location
    assert location is not None
    return folder, bucket, S3Uri.parse(location).key


def test_chunks_are_those_of_a_local_store_and_none_is_left_here(stored, local, s3) -> None:
    output, bucket = stored
    metadata = read_metadata(output)
    place = S3Uri.parse(str(metadata.location))
    assert (place.bucket, place.key.rpartition("/")[0]) == (bucket, "team/stores")
    objects = {key.removeprefix(f"{place.key}/"): data for key, data in s3.objects(bucket).items()}
    ours, theirs = chunks_in(files(local)), chunks_in(objects)
    assert len(ours) == len(theirs) > 4
    # The name in the bucket says the content as well: chunk-3-0.bin is chunk-3-0-<sha256>.bin there.
    assert {f"{key.rpartition('-')[0]}.bin": data for key, data in theirs.items()} == ours
    assert set(objects) - set(theirs) == {
        "made_from.json", "store.json", "blocks.parquet", "statistics.safetensors", "train/index.json",
        "valid/index.json",
    }  # fmt: skip
    here = files(output)
    assert set(here) == set(objects) - set(theirs) - {"made_from.json"}
    assert all(objects[name] == data for name, data in here.items())
    assert not list(output.parent.rglob("*.bin"))
    assert here["statistics.safetensors"] == files(local)["statistics.safetensors"]
    assert metadata.model_copy(update={"location": None}) == read_metadata(local)


def test_the_store_is_complete_only_at_the_end(plm, sequences, s3, tmp_path) -> None:
    bucket = s3.bucket()
    output = run(plm, sequences, tmp_path, f"s3://{bucket}")
    assert not any(key.endswith("store.json") for key in s3.objects(bucket))
    publish(output)
    stamps = {item["Key"]: item["LastModified"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert max(stamps.values()) == next(stamp for key, stamp in stamps.items() if key.endswith("/store.json"))


def test_rows_checks_and_batches_are_those_of_a_local_store(stored, local, s3, tmp_path) -> None:
    for split in ("train", "valid"):
        ours, theirs = (torch.cat(list(BlockStore(folder, split).rows(50))) for folder in (local, stored[0]))
        assert torch.equal(ours, theirs)
    ours, theirs = check_store(local), check_store(stored[0], read_metadata(local).num_tokens)
    assert theirs.drop(columns="chunk").equals(ours.drop(columns="chunk"))
    with BlockCache(tmp_path / "blocks", 3000) as cache:
        readers = [
            ActivationReader(local, "train", 77, 5, 200),
            ActivationReader(stored[0], "train", 77, 5, 200),
            ActivationReader(stored[0], "train", 77, 5, 200, cache),
        ]
        steps = [*range(3 * readers[0].num_rows // 77), 3, 60, 0]  # over epochs, and jumping
        for step in steps:
            first, *others = (reader.batch(step) for reader in readers)
            assert all(torch.equal(first, other) for other in others)


def on_disk(folder: Path) -> int:
    """Bytes in a folder whose files come and go."""
    while True:
        try:
            return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0
        except FileNotFoundError:
            continue


def test_the_cap_holds_and_no_copy_of_the_store_is_here(stored, s3, tmp_path) -> None:
    store = BlockStore(stored[0], "train")
    total = sum(block.num_rows for block in store.blocks) * 8 * 2
    cap = total // 3
    sizes = []
    with BlockCache(tmp_path / "blocks", cap) as cache:
        reader = ActivationReader(stored[0], "train", 64, 1, 256, cache)
        for step in range(4 * reader.num_rows // 64):
            reader.batch(step)
            sizes.append(on_disk(tmp_path / "blocks"))
    assert cap / 2 < max(sizes) <= cap < total / 2
    assert [path.name for path in tmp_path.iterdir()] == ["blocks"]


def test_the_cache_spares_requests_and_serves_the_next_run(stored, s3, tmp_path, monkeypatch) -> None:
    asked = []
    get = S3.get

    def count(self, uri, start=0, num_bytes=None):
        asked.append(num_bytes)
        return get(self, uri, start, num_bytes)

    monkeypatch.setattr(S3, "get", count)
    num_blocks = len(read_table(stored[0], "train"))

    def epochs(number: int, cap: int) -> int:
        asked.clear()
        with BlockCache(tmp_path / f"{cap}", cap) as cache:
            reader = ActivationReader(stored[0], "train", 64, 1, 256, cache)
            for step in range(number * reader.num_rows // 64):
                reader.batch(step)
        return len(asked)

    assert epochs(3, 10**9) == num_blocks
    assert epochs(3, 10**9) == 0  # another run over the same cache
    assert num_blocks < epochs(3, 20_000) < 3 * num_blocks
    assert epochs(2, 1) >= 2 * num_blocks - 1  # nothing fits: everything comes through memory


def test_the_next_pool_comes_while_this_one_is_used(stored, s3, tmp_path) -> None:
    with BlockCache(tmp_path / "blocks", 10**6) as cache:
        reader = ActivationReader(stored[0], "train", 64, 1, 256, cache)
        reader.batch(0)
        blocks = reader._blocks_of(0, 1)
        deadline = time.monotonic() + 10
        while not all((tmp_path / "blocks" / block.sha256).is_file() for block in blocks):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_stock_litdata_reads_it_over_http(stored, local, s3, tmp_path, monkeypatch) -> None:
    import litdata
    import litdata.streaming.downloader as downloader

    monkeypatch.setitem(downloader._OBSTORE_CLIENT_OPTIONS, "allow_http", True)
    dataset = litdata.StreamingDataset(
        f"{read_metadata(stored[0]).location}/train",
        cache_dir=str(tmp_path / "cache"),
        storage_options={
            "endpoint_url": s3.url,
            "aws_access_key_id": s3.access_key,
            "aws_secret_access_key": s3.secret_key,
            "region_name": "us-east-1",
        },
    )
    store = BlockStore(local, "train")
    assert len(dataset) == len(store.blocks)
    for theirs, (_, values) in zip(dataset, store.stream(), strict=True):
        assert torch.equal(theirs, values)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_extraction_uploads_only_the_rest(plm, sequences, stored, s3, tmp_path, stop_after) -> None:
    bucket = s3.bucket()
    computed, local_chunks = [], []

    def stop(part):
        computed.append(part.name)
        local_chunks.append(len(list(tmp_path.rglob("*.bin"))))
        if len(computed) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plm, sequences, tmp_path, f"s3://{bucket}/team/stores", on_part=stop)
    assert local_chunks == [0] * stop_after
    before = {item["Key"]: item["LastModified"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]}
    time.sleep(1.1)  # the server's clock ticks in seconds
    again: list[str] = []
    output = run(
        plm, sequences, tmp_path, f"s3://{bucket}/team/stores", "second", on_part=lambda part: again.append(part.name)
    )
    assert not set(computed) & set(again)
    after = {item["Key"]: item["LastModified"] for item in s3.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert all(after[key] == stamp for key, stamp in before.items() if key.endswith(".bin"))
    publish(output)
    assert {key: data for key, data in s3.objects(bucket).items() if not key.endswith("store.json")} == {
        key: data for key, data in s3.objects(stored[1]).items() if not key.endswith("store.json")
    }


def test_a_chunk_lost_from_the_bucket_is_made_again(plm, sequences, s3, tmp_path) -> None:
    bucket = s3.bucket()
    run(plm, sequences, tmp_path, f"s3://{bucket}")
    original = chunks_in(s3.objects(bucket))
    lost, changed = next(iter(original)), list(original)[-1]
    s3.client().delete_object(Bucket=bucket, Key=lost)
    s3.client().put_object(Bucket=bucket, Key=changed, Body=b"x")
    again: list[str] = []
    run(plm, sequences, tmp_path, f"s3://{bucket}", "second", on_part=lambda part: again.append(part.name))
    assert len(again) == 2
    assert chunks_in(s3.objects(bucket)) == original


def test_another_machine_goes_on_where_this_one_stopped(plm, sequences, stored, s3, tmp_path) -> None:
    """A retried pod has an empty disk: what is finished is known from the bucket, for the same code and platform."""
    bucket, computed = s3.bucket(), []
    store = f"s3://{bucket}/team/stores"

    def stop(part):
        computed.append(part.name)
        if len(computed) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plm, sequences, tmp_path / "one", store, resume_key="a", on_part=stop)
    again: list[str] = []
    output = run(plm, sequences, tmp_path / "two", store, resume_key="a", on_part=lambda part: again.append(part.name))
    everything = {
        path.parent.name for path in (tmp_path / "two" / "checkpoints" / "layer1.residual").rglob("part.json")
    }
    # The third part was uploaded, and recorded before it was reported.
    assert set(again) == everything - set(computed)
    assert {name: data for name, data in files(output).items() if name != "store.json"} == {
        name: data for name, data in files(stored[0]).items() if name != "store.json"
    }
    record = next(key for key in s3.objects(bucket) if key.endswith("valid-00000/part.json"))
    original = s3.objects(bucket)[record]
    for number, damaged in enumerate((b"{", b"[]", original.replace(b'"blocks": [[', b'"blocks": [3, ['))):
        s3.client().put_object(Bucket=bucket, Key=record, Body=damaged)
        third: list[str] = []
        folder = tmp_path / f"three{number}"
        run(plm, sequences, folder, store, resume_key="a", on_part=lambda part: third.append(part.name))  # noqa: B023
        assert third == ["valid-00000"]
        assert s3.objects(bucket)[record] == original
    other: list[str] = []
    run(plm, sequences, tmp_path / "four", store, resume_key="b", on_part=lambda part: other.append(part.name))
    assert set(other) == everything


PROGRAM = """
import sys
from pathlib import Path
import pandas as pd
from plmsae.plms import load_plm
from tests.activations.test_remote import run
root = Path(sys.argv[1])
run(load_plm("lm", root=root), pd.read_parquet(root / "sequences.parquet"), root, sys.argv[2],
    on_part=lambda part: print(part.name, flush=True))
"""


def test_kill_at_a_random_instant(sequences, s3, tmp_path) -> None:
    bucket = s3.bucket()
    write_model(tmp_path / "lm")
    sequences.to_parquet(tmp_path / "sequences.parquet")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), f"s3://{bucket}/a"]
    process = subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "train-00000"
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    plm = load_plm("lm", root=tmp_path)
    computed: list[str] = []
    resumed = run(plm, sequences, tmp_path, f"s3://{bucket}/a", "resumed", on_part=lambda p: computed.append(p.name))
    assert "train-00000" not in computed
    straight = run(plm, sequences, tmp_path / "straight", f"s3://{bucket}/b")
    first, second = (
        {key[2:]: data for key, data in chunks_in(s3.objects(bucket)).items() if key.startswith(prefix)}
        for prefix in ("a/", "b/")
    )
    assert first == second
    assert files(resumed)["train/index.json"] == files(straight)["train/index.json"]


def test_another_setting_is_another_place(plm, sequences, s3, tmp_path) -> None:
    bucket = s3.bucket()
    places = set()
    for number, settings in enumerate((SETTINGS, Settings(**{**vars(SETTINGS), "seed": 4}))):
        extract(
            plm,
            sequences,
            tmp_path / f"o{number}",
            tmp_path / f"c{number}",
            settings,
            sequences_sha256=SHA256,
            store=S3Uri.parse(f"s3://{bucket}/x"),
        )
        places.add(read_metadata(tmp_path / f"o{number}").location)
    assert len(places) == 2
    for number in range(2):
        check_store(tmp_path / f"o{number}")


def test_what_is_left_out_is_left_out_of_a_bucket_too(sequences, s3, tmp_path) -> None:
    """On a second machine as well, which has only the records of the first."""
    plm = load_plm(str(huge_tryptophan(write_model(tmp_path / "lm"))))
    settings = Settings(**{**vars(SETTINGS), "layer": 0, "dtype": "float16", "non_finite": "mask"})
    store = S3Uri.parse(f"s3://{s3.bucket()}")
    outputs = []
    for name, place in (("local", None), ("one", store), ("two", store)):
        again: list[str] = []
        extract(
            plm,
            sequences,
            tmp_path / name,
            tmp_path / f"{name}-checkpoints",
            settings,
            sequences_sha256=SHA256,
            store=place,
            resume_key="a",
            on_part=lambda part: again.append(part.name),  # noqa: B023
        )
        assert bool(again) == (name != "two")
        outputs.append(tmp_path / name)
    local, one, two = outputs
    assert files(one) == files(two)
    publish(one)
    assert files(one)["masked.csv"] == files(local)["masked.csv"]
    assert read_metadata(one).num_masked == read_metadata(local).num_masked
    residues = sequences["sequence"].str.len().groupby(sequences["split"]).sum().to_dict()
    assert check_store(one, residues)["num_rows"].sum() == check_store(local, residues)["num_rows"].sum()


def test_a_missing_or_cut_chunk_is_named(stored, s3, tmp_path) -> None:
    folder, bucket, key = copy_of(stored, s3, tmp_path / "store")
    name = read_table(folder, "train")[0].chunk
    address = f"{key}/train/{name}"
    whole = s3.objects(bucket)[address]
    s3.client().put_object(Bucket=bucket, Key=address, Body=whole[:-1])
    with pytest.raises(DataError, match=f"chunk '{name}' is corrupted: it has {len(whole) - 1} bytes") as caught:
        BlockStore(folder, "train")
    assert caught.value.where == f"s3://{bucket}/{address}"
    s3.client().delete_object(Bucket=bucket, Key=address)
    with pytest.raises(DataError, match=f"chunk '{name}' is missing") as caught:
        check_store(folder)
    assert "extract again" in str(caught.value.fix)


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_flipped_bit_or_a_loss_while_reading_is_named(stored, s3, tmp_path, with_cache) -> None:
    folder, bucket, key = copy_of(stored, s3, tmp_path / "store")
    cache = BlockCache(tmp_path / "blocks", 10**6) if with_cache else None
    reader = ActivationReader(folder, "train", 64, 0, 256, cache)
    victim = reader._blocks_of(0, 2)[0]
    address = f"{key}/train/{victim.chunk}"
    data = bytearray(s3.objects(bucket)[address])
    data[victim.offset + 5] ^= 1
    s3.client().put_object(Bucket=bucket, Key=address, Body=bytes(data))
    pattern = f"chunk '{victim.chunk}' is corrupted: it holds other values than were stored .block at byte"
    with pytest.raises(DataError, match=pattern) as caught:
        [reader.batch(step) for step in range(reader.num_rows // 64)]
    assert caught.value.where == f"s3://{bucket}/{address}"
    assert not (tmp_path / "blocks" / victim.sha256).exists()
    s3.client().delete_object(Bucket=bucket, Key=address)
    with pytest.raises(DataError, match=f"chunk '{victim.chunk}' is missing"):
        [reader.batch(step) for step in range(reader.num_rows // 64)]


def test_a_block_damaged_on_its_way_is_asked_for_again(stored, s3, monkeypatch) -> None:
    get, calls = S3.get, []

    def damage(self, uri, start=0, num_bytes=None):
        data = get(self, uri, start, num_bytes)
        calls.append(start)
        return bytes(len(data)) if len(calls) % 2 else data

    monkeypatch.setattr(remote, "MAX_REQUESTS", 1)
    monkeypatch.setattr(S3, "get", damage)
    check_store(stored[0])
    assert len(calls) == 2 * sum(len(read_table(stored[0], split)) for split in ("train", "valid"))


@pytest.mark.parametrize("text", [None, b"", b"PAR1 no table"])
def test_a_broken_block_table(stored, s3, tmp_path, text) -> None:
    folder, _, _ = copy_of(stored, s3, tmp_path / "store")
    (folder / "blocks.parquet").unlink() if text is None else (folder / "blocks.parquet").write_bytes(text)
    with pytest.raises(DataError, match="table of the blocks is missing or not valid"):
        BlockStore(folder, "train")


def test_a_bucket_that_is_not_there_is_known_before_the_work(plm, sequences, s3, tmp_path, monkeypatch) -> None:
    computed: list[str] = []

    def attempt() -> None:
        run(plm, sequences, tmp_path, "s3://no-such-bucket/a", on_part=lambda part: computed.append(part.name))

    with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist"):
        attempt()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(TryAgainError, match="cannot be reached"):
        attempt()
    assert time.monotonic() - began < 10
    assert not computed


def test_a_server_that_goes_away_while_reading(stored, s3, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TryAgainError, match="cannot be reached"):
        BlockStore(stored[0], "train")


def test_memory_in_flight_is_bounded(stored, s3, monkeypatch) -> None:
    monkeypatch.setattr(remote, "MAX_BYTES_IN_FLIGHT", 2 * 64 * 8 * 2)  # two blocks
    store = BlockStore(stored[0], "train")
    assert store._chunks._pool._max_workers == 2  # type: ignore[attr-defined]
    assert sum(len(rows) for rows in store.rows(100)) == store.num_rows
