"""Batches are a pure function of (seed, step); an epoch holds every row once; rows mix across blocks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plmsae.activations.reader import ActivationReader
from plmsae.errors import DataError, UserError
from tests.activations.conftest import numbered_rows, numbers_of, write_store

PARTS = (500, 333, 40)
NUM_ROWS = sum(PARTS)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    ends = np.cumsum(PARTS)
    parts = [numbered_rows(int(end) - size, int(end)) for end, size in zip(ends, PARTS, strict=True)]
    return write_store(tmp_path_factory.mktemp("reader") / "store", parts, 32)


def stream(reader, num_rows):
    steps = -(-num_rows // reader.batch_size)
    return [number for step in range(steps) for number in numbers_of(reader.batch(step))][:num_rows]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 2 * NUM_ROWS), pool_rows=st.integers(1, 2 * NUM_ROWS), seed=st.integers(0, 2**40))
def test_every_epoch_holds_every_row_once(store, batch_size, pool_rows, seed):
    reader = ActivationReader(store, "train", batch_size, seed, pool_rows)
    numbers = stream(reader, 2 * NUM_ROWS)
    first, second = numbers[:NUM_ROWS], numbers[NUM_ROWS:]
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))
    assert first != second
    assert first != sorted(first)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 60), min_size=1, max_size=12), pool_rows=st.integers(1, NUM_ROWS))
def test_resuming_at_any_step_gives_the_same_batches(store, steps, pool_rows):
    straight = ActivationReader(store, "train", 50, 3, pool_rows)
    batches = [straight.batch(step) for step in range(61)]
    jumping = ActivationReader(store, "train", 50, 3, pool_rows)
    for step in steps:
        assert torch.equal(jumping.batch(step), batches[step])


def test_seeds_differ_and_repeat(store):
    orders = [stream(ActivationReader(store, "train", 64, seed, 128), NUM_ROWS) for seed in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


def test_rows_of_a_batch_come_from_across_the_store(store):
    """With a pool of eight blocks a batch of 64 rows meets nearly all of them, whatever lay side by side."""
    reader = ActivationReader(store, "train", 64, 0, 8 * 32)
    blocks = {number // 32 for number in numbers_of(reader.batch(0))}
    assert len(blocks) >= 7
    neighbours = np.abs(np.diff(numbers_of(reader.batch(1)))) == 1
    assert neighbours.mean() < 0.05


def test_blocks_are_permuted_anew_each_epoch_and_rows_in_each_pool(tmp_path):
    folder = write_store(tmp_path / "store", [numbered_rows(0, 16 * 32)], 32)
    reader = ActivationReader(folder, "train", 32, 0, 32)  # a batch is a block
    batches = [numbers_of(reader.batch(step)) for step in range(48)]
    blocks = [{number // 32 for number in batch} for batch in batches]
    assert all(len(block) == 1 for block in blocks)
    orders = [tuple(block.pop() for block in blocks[epoch * 16 : epoch * 16 + 16]) for epoch in range(3)]
    assert len({*orders, tuple(range(16))}) == 4
    assert len({tuple(number % 32 for number in batch) for batch in batches}) == 48


def test_row_order_within_a_pool_is_uniform(store):
    """The first row of the stream is any row of the store, over seeds: mean and spread of a uniform draw."""
    first = [numbers_of(ActivationReader(store, "train", 1, seed, NUM_ROWS).batch(0))[0] for seed in range(300)]
    assert abs(np.mean(first) - NUM_ROWS / 2) < 5 * NUM_ROWS / np.sqrt(12 * 300)
    assert np.std(first) == pytest.approx(NUM_ROWS / np.sqrt(12), rel=0.15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_values_are_exact_in_fp32(tmp_path, dtype):
    torch_dtype = getattr(torch, dtype)
    rows = torch.randn(70, 6, generator=torch.Generator().manual_seed(0)).to(torch_dtype)
    rows[0, :4] = torch.tensor([0.0, -0.0, torch.finfo(torch_dtype).max, torch.finfo(torch_dtype).tiny / 4])
    reader = ActivationReader(write_store(tmp_path / "store", [rows], 16, dtype), "train", 70, 5)
    batch = reader.batch(0)
    assert batch.dtype == torch.float32
    assert sorted(batch.tolist()) == sorted(rows.tolist())


def test_output_tensor_is_filled_in_place(store):
    reader = ActivationReader(store, "train", 100, 0, 200)
    out = torch.full((100, 3), float("nan"))
    assert reader.batch(4, out) is out
    assert torch.equal(out, ActivationReader(store, "train", 100, 0, 200).batch(4))


def test_batches_are_new_tensors_that_later_ones_do_not_change(store):
    reader = ActivationReader(store, "train", 100, 0, 200)
    first = reader.batch(0)
    kept = first.clone()
    reader.batch(5)
    assert torch.equal(first, kept)


# In a process of its own: what other tests allocated and freed would be counted, or hide what is allocated here.
_RESIDENT = """
import json, os, sys
from pathlib import Path
import torch
from plmsae.activations.reader import ActivationReader
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
reader = ActivationReader(Path(sys.argv[1]), "train", 512, 0, 4096, ahead=bool(int(sys.argv[2])))
out, grown = torch.empty(512, 512), 0
for step in range(4 * 65_536 // 512):
    reader.batch(step, out)
    grown = max(grown, resident() - before)
print(json.dumps([sum(pool.rows.nbytes for pool in reader._pools._pools), grown]))
"""


@pytest.mark.parametrize("ahead", [False, True])
def test_memory_is_bounded_by_the_pool(tmp_path, ahead):
    """Four epochs of 64 MiB through pools of 4 MiB: what the reader allocates is the pools and a batch."""
    d_model = 512
    folder = write_store(tmp_path / "store", [torch.zeros(65_536, d_model, dtype=torch.bfloat16)], 512)
    command = [sys.executable, "-c", _RESIDENT, str(folder), str(int(ahead))]
    buffers, grown = json.loads(subprocess.run(command, capture_output=True, timeout=120, check=True).stdout)
    pool_bytes = 4096 * d_model * 2
    assert buffers == (1 + ahead) * pool_bytes
    assert grown < (1 + ahead) * pool_bytes + 8 * 2**20


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 400),
    pool_rows=st.integers(1, NUM_ROWS),
    threads=st.integers(1, 4),
    ahead=st.booleans(),
)
def test_threads_and_loading_ahead_change_no_batch(store, batch_size, pool_rows, threads, ahead):
    steps = range(3 * NUM_ROWS // batch_size + 2)
    alone = ActivationReader(store, "train", batch_size, 1, pool_rows)
    shared = ActivationReader(store, "train", batch_size, 1, pool_rows, ahead=ahead)
    with ThreadPoolExecutor(threads) as pool:
        for step, batch in zip(steps, pool.map(shared.batch, steps), strict=True):
            assert torch.equal(batch, alone.batch(step))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_batch_of_one_process(store, world_size):
    alone = ActivationReader(store, "train", 30 * world_size, 7, 128)
    ranks = [
        ActivationReader(store, "train", 30, 7, 128, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for step in range(40):
        assert torch.equal(torch.cat([reader.batch(step) for reader in ranks]), alone.batch(step))
    assert {reader.state()["world_size"] for reader in ranks} == {world_size}


def test_the_next_pool_is_loaded_while_this_one_is_used(store):
    reader = ActivationReader(store, "train", 32, 0, 64, ahead=True)
    reader.batch(0)
    deadline = time.monotonic() + 10
    while not any(pool._ready and pool._key == (0, 1) for pool in reader._pools._pools):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_empty_split_and_unknown_split(tmp_path, store):
    with pytest.raises(UserError, match="no split 'test'"):
        ActivationReader(store, "test", 10, 0)
    empty = write_store(tmp_path / "store", [numbered_rows(0, 1)], 4)
    text = (empty / "store.json").read_text()
    (empty / "store.json").write_text(text.replace('"train": 1', '"train": 0'))
    index = empty / "train" / "index.json"
    index.write_text('{"chunks": [], "config": {"data_format": ["tensor"], "compression": null, "encryption": null}}')
    with pytest.raises(DataError, match="split 'train' of the store is empty"):
        ActivationReader(empty, "train", 10, 0)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_chunk_lost_while_training_is_named(tmp_path, ahead):
    folder = write_store(tmp_path / "store", [numbered_rows(0, 64), numbered_rows(64, 128)], 16)
    reader = ActivationReader(folder, "train", 16, 0, 16, ahead=ahead)
    (folder / "train" / "chunk-1-0.bin").unlink()
    with pytest.raises(DataError, match=r"chunk 'chunk-1-0.bin' cannot be read"):
        [reader.batch(step) for step in range(8)]
