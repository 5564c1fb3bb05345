"""Shuffled batches of activations: our reader against InterPLM's loader and stock LitData, interleaved in one process.

    python benchmarks/read.py [--rows 393216] [--d 320] [--batch 2048] [--shards 20 2000] [--rounds 3]

Every path delivers one epoch of the same rows in fp32 batches; before it is timed, each is checked to have delivered
every row once, with its values. Warm: the files are in the page cache. The paths:

- ours: `ActivationReader` on bf16 blocks, as a training uses it, alone and with one thread that reads ahead
  (`train_sae.num_workers: 1`).
- InterPLM's loader (ElanaPearl/InterPLM at 5f4cbf9, interplm/train/data_loader.py), written anew path by path: a
  fp32 `activations.pt` per shard, a `DataLoader` that asks for one row at a time, which looks for the shard in a list
  of cumulative sizes, keeps a set of the rows it has seen, and stacks; rows are shuffled within a shard alone.
- LitData's `StreamingDataset(shuffle=True)` with a row per item (fp16, which its serialiser knows) and
  `StreamingDataLoader` (`batch_decode=1`: its default decodes 32 neighbours for each row that is asked for, 9 times
  slower in shuffled order), and on our own store with a block per item, where rows are not mixed within blocks.

A ratio is the time of a peer over ours in the same round; CPU time hardly feels the neighbours, wall time does. Cold:
the chunk files are dropped from the page cache (`posix_fadvise(DONTNEED)` after `fsync`; what a hypervisor or a disk
keeps is out of reach), the first epoch after that is timed, and what the kernel then read from the disk is printed.
S3: the chunks in a bucket of a moto server, a process of its own on this machine, which answers at 50 to 130 MB/s: the
rate is the server's; CPU seconds are ours alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from litdata.streaming.writer import BinaryWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the S3 server of the tests

from plmsae.activations.block_table import hash_blocks, write_table
from plmsae.activations.blocks import BlockStore
from plmsae.activations.cache import BlockCache
from plmsae.activations.metadata import Normaliser, StoreMetadata, write_metadata
from plmsae.activations.reader import ActivationReader
from plmsae.activations.writer import write_chunks, write_index
from plmsae.artifacts.s3 import S3, S3Uri
from plmsae.training.data import StepStream
from tests import s3server

BLOCK_ROWS = 2048
OURS = "ours"
Batches = Callable[[], Iterator[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 393_216), ("d", 320), ("batch", 2048), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shards", type=int, nargs="+", default=[20, 2000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = numbered_rows(arguments.rows, arguments.d)
    print("# Reading activations\n")
    print(
        f"{arguments.rows:,} rows of width {arguments.d}, batches of {arguments.batch}, {arguments.rounds} interleaved "
        "rounds of one epoch. Slower is the ratio to ours in the same round, min / median / max of CPU time (wall)."
    )
    for num_shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), rows, num_shards, arguments.batch, arguments.rounds)


def measure(folder: Path, rows: Tensor, num_shards: int, batch: int, rounds: int) -> None:
    shards = rows.tensor_split(num_shards)
    store = write_store(folder / "ours", shards, None)
    write_pt(folder / "pt", shards)
    write_rows(folder / "rows", rows, len(shards[0]))
    alone = ActivationReader(store, "train", batch, 0)
    ahead = ActivationReader(store, "train", batch, 0, ahead=True)
    epochs = itertools.count()
    paths: dict[str, Batches] = {
        OURS: lambda: epoch_of(alone, next(epochs)),
        "ours, num_workers 1": lambda: epoch_of(ahead, next(epochs), num_workers=1),
        "InterPLM's loader": lambda: iter(interplm_loader(folder / "pt", batch)),
        "LitData, a row per item": lambda: (
            x.float()
            for x in litdata.StreamingDataLoader(
                litdata.StreamingDataset(str(folder / "rows"), shuffle=True, drop_last=False, batch_decode=1),
                batch_size=batch,
            )
        ),
        "LitData, a block per item": lambda: (
            x.float() for x in litdata.StreamingDataset(str(store / "train"), shuffle=True, drop_last=False)
        ),
    }
    for name, path in paths.items():
        check(name, path(), rows)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            times[name].append(timed(path))
    print(f"\n## {len(shards):,} shards\n")
    print("| path | rows per CPU second | rows/s (wall) | slower than ours |\n|---|---|---|---|")
    for name, measured in times.items():
        cpu, wall = (spread([len(rows) / one[kind] / 1e6 for one in measured], "M") for kind in (1, 0))
        ratios = [sorted(a[kind] / b[kind] for a, b in zip(measured, times[OURS], strict=True)) for kind in (1, 0)]
        slower = f"{spread(ratios[0], '')} ({float(np.median(ratios[1])):.2f})"
        print(f"| {name} | {cpu} | {wall} | {slower} |")
    print_cold(store, rows, batch)
    print_s3(folder, shards, rows, batch)


def print_cold(store: Path, rows: Tensor, batch: int) -> None:
    reader = ActivationReader(store, "train", batch, 0)
    for file in (store / "train").glob("*.bin"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    before = bytes_from_disk()
    wall, cpu = timed(lambda: epoch_of(reader, 0))
    read = bytes_from_disk() - before
    print(
        f"\nCold: {len(rows) / wall / 1e6:.2f} M rows/s (wall), {len(rows) / cpu / 1e6:.2f} M per CPU second; "
        f"{read / 2**20:.0f} of {rows.numel() * 2 / 2**20:.0f} MiB came from the disk."
    )


def print_s3(folder: Path, shards: tuple[Tensor, ...], rows: Tensor, batch: int) -> None:
    with s3server.start() as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(server.env)
        place = S3Uri.parse(f"s3://{server.bucket()}/store")
        store = write_store(folder / "remote", shards, place)
        reader = ActivationReader(store, "train", batch, 0)
        rates = [("S3 without a cache", *timed(lambda: epoch_of(reader, 0)))]
        with BlockCache(folder / "cache", 2 * rows.numel() * 2) as cache:
            reader = ActivationReader(store, "train", batch, 0, cache=cache, ahead=True)
            check("S3", epoch_of(reader, 0), rows)
            reader = ActivationReader(store, "train", batch, 0, cache=cache)
            rates.append(("a later epoch, from the cache on this disk", *timed(lambda: epoch_of(reader, 1))))
    said = [
        f"{name} {len(rows) / wall / 1e6:.3f} M rows/s (wall), {len(rows) / cpu / 1e6:.2f} M per CPU second"
        for name, wall, cpu in rates
    ]
    print(f"\n{'; '.join(said)}.")


def epoch_of(reader: ActivationReader, epoch: int, num_workers: int = 0) -> Iterator[Tensor]:
    """The batches that hold an epoch; rows of the neighbouring epochs in the first and last are cut off."""
    first, last = epoch * reader.num_rows, (epoch + 1) * reader.num_rows
    steps = first // reader.batch_size, -(-last // reader.batch_size)
    for step, x in enumerate(StepStream(reader, *steps, num_workers), start=steps[0]):
        start = step * reader.batch_size
        yield x[max(0, first - start) : last - start]


def timed(path: Batches) -> tuple[float, float]:
    """Wall and CPU seconds of all batches."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in path():
        pass
    return time.perf_counter() - wall, time.process_time() - cpu


def check(name: str, batches: Iterator[Tensor], rows: Tensor) -> None:
    """Every row once, with its values."""
    seen = np.zeros(len(rows), dtype=np.int64)
    for x in batches:
        assert x.dtype == torch.float32, name
        numbers = (x[:, 0] * 128**2 + x[:, 1] * 128 + x[:, 2]).long()
        assert torch.equal(x, rows[numbers].float()), name
        np.add.at(seen, numbers.numpy(), 1)
    assert bool((seen == 1).all()), name


def numbered_rows(num_rows: int, d: int) -> Tensor:
    """Rows that carry their number in their first three values; all values are exact in bf16 and in fp16."""
    x = torch.randint(-127, 128, (num_rows, d), generator=torch.Generator().manual_seed(0), dtype=torch.int8).float()
    x = x / 64
    numbers = torch.arange(num_rows)
    x[:, 0], x[:, 1], x[:, 2] = numbers // 128**2, numbers // 128 % 128, numbers % 128
    return x.bfloat16()


def write_store(folder: Path, shards: tuple[Tensor, ...], place: S3Uri | None) -> Path:
    """A store with a chunk per shard; with a place its chunks are in the bucket."""
    train = folder / "train"
    train.mkdir(parents=True)
    indices = []
    for number, x in enumerate(shards):
        index = write_chunks(folder / "shard", x, torch.arange(len(x)), BLOCK_ROWS)
        (chunk,) = index["chunks"]
        (folder / "shard" / chunk["filename"]).rename(train / f"{number:06d}.bin")
        chunk["filename"] = f"{number:06d}.bin"
        (folder / "shard").rmdir()
        indices.append(index)
    write_index(train, indices)
    num_rows = sum(map(len, shards))
    metadata = StoreMetadata(
        plm="none",
        plm_revision="none",
        layer=0,
        hook="residual",
        dtype="bfloat16",
        d_model=shards[0].shape[1],
        block_rows=BLOCK_ROWS,
        num_tokens={"train": num_rows},
        normaliser=Normaliser(scale=1.0),
        sequences_sha256="0" * 64,
    )
    write_metadata(folder, metadata)
    if place is None:
        return folder
    files = sorted(train.glob("*.bin"))
    by_chunk: dict[str, list[Any]] = {}
    for block in BlockStore(folder, "train").blocks:
        by_chunk.setdefault(block.chunk, []).append(block)
    row_bytes = shards[0].shape[1] * 2
    write_table(folder, {"train": [b for f in files for b in hash_blocks(f, by_chunk[f.name], row_bytes)]})
    write_metadata(folder, metadata.model_copy(update={"location": str(place)}))
    bucket = S3()
    for file in files:
        bucket.upload(file, place / "train" / file.name, {})
        file.unlink()
    return folder


def write_pt(folder: Path, shards: tuple[Tensor, ...]) -> None:
    for number, x in enumerate(shards):
        shard = folder / f"shard_{number:06d}"
        shard.mkdir(parents=True)
        torch.save(x.float(), shard / "activations.pt")
        (shard / "metadata.json").write_text(json.dumps({"total_tokens": len(x), "d_model": x.shape[1]}))


def write_rows(folder: Path, rows: Tensor, shard_rows: int) -> None:
    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_size=shard_rows)
    for number, row in enumerate(rows.half()):
        writer.add_item(number, row)
    writer.done()
    writer.merge(num_workers=1)


class _PtShard(Dataset[Tensor]):
    def __init__(self, file: Path, num_rows: int) -> None:
        self.file, self.num_rows = file, num_rows
        self.order: Tensor | None = None
        self.seen: set[int] = set()
        self.values: Tensor | None = None

    def __getitem__(self, index: int) -> Tensor:
        if self.order is None:
            self.order = torch.randperm(self.num_rows)
        row = self.order[index]
        self.seen.add(index)
        if self.values is None:
            self.values = torch.load(self.file, map_location="cpu", weights_only=True)
        value = self.values[row]
        if len(self.seen) == self.num_rows:
            value, self.values = value.clone(), None
            self.seen.clear()
        return value


class _PtShards(Dataset[Tensor]):
    def __init__(self, folder: Path) -> None:
        self.shards, self.ends, self.active = [], [0], -1
        for shard in sorted(path for path in folder.iterdir() if path.is_dir()):
            metadata = json.loads((shard / "metadata.json").read_text())
            self.shards.append(_PtShard(shard / "activations.pt", metadata["total_tokens"]))
            self.ends.append(self.ends[-1] + metadata["total_tokens"])

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Tensor:
        shard = next(i for i, end in enumerate(self.ends) if end > index) - 1
        if shard != self.active:  # where it closes memory maps; these shards have none
            for other in self.shards:
                hasattr(other, "_close_memmap")
            self.active = shard
        return self.shards[shard][index - self.ends[shard]]


def interplm_loader(folder: Path, batch: int) -> DataLoader[Tensor]:
    torch.manual_seed(0)
    return DataLoader(
        _PtShards(folder), batch_size=batch, shuffle=False, collate_fn=lambda rows: torch.stack(rows).to("cpu")
    )


def bytes_from_disk() -> int:
    """Bytes that the kernel has fetched from the disk for this process."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def spread(values: list[float], unit: str) -> str:
    return " / ".join(f"{value:.2f}{unit}" for value in (min(values), float(np.median(values)), max(values)))


if __name__ == "__main__":
    main()
