"""Random access to the row blocks of one split of a store, on this disk or in a bucket."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from plmsae.activations.block_table import read_table
from plmsae.activations.cache import BlockCache
from plmsae.activations.chunks import FIX, Block, Chunks, LocalChunks, missing, read_block_table
from plmsae.activations.metadata import StoreMetadata, read_metadata
from plmsae.activations.remote import RemoteChunks
from plmsae.activations.rows import decode
from plmsae.artifacts.s3 import S3Uri
from plmsae.errors import DataError, UserError, did_you_mean

INDEX = "index.json"
DECODE_ROWS = 4096
WINDOW_BYTES = 64 * 2**20  # read at once where all rows pass by


class BlockStore:
    """The blocks of one split of a store.

    Args:
        folder: Store folder, with `store.json`; the chunks lie in it, or where `store.json` says.
        split: `train` or `valid`.
        cache: Keeps blocks of a remote store on this disk; without one every read goes to the bucket.

    Raises:
        UserError: The store has no such split, or no permission to read the bucket.
        DataError: A chunk is missing, corrupted, or does not match `store.json`; the message names it.
        TryAgainError: The bucket cannot be reached.
    """

    def __init__(self, folder: Path, split: str, cache: BlockCache | None = None) -> None:
        self.metadata: StoreMetadata = read_metadata(folder)
        if split not in self.metadata.num_tokens:
            raise UserError(
                f"the store has no split '{split}'",
                where=str(folder),
                fix=did_you_mean(split, self.metadata.num_tokens),
            )
        self.folder = folder / split
        chunks = _read_index(self.folder)
        self.blocks: list[Block]
        self._chunks: Chunks
        if self.metadata.location is None:
            self.blocks = [block for chunk in chunks for block in self._read_chunk(*chunk)]
            self._chunks = LocalChunks(self.folder)
        else:
            self.blocks = read_table(folder, split)
            place = S3Uri.parse(self.metadata.location, str(folder)) / split
            sizes = {name: num_bytes for name, num_bytes, _ in chunks}
            self._chunks = RemoteChunks(place, sizes, self.blocks, self._row_bytes, cache)
        self.num_rows = sum(block.num_rows for block in self.blocks)
        if self.num_rows != self.metadata.num_tokens[split]:
            raise DataError(
                f"the chunks hold {self.num_rows} rows, not {self.metadata.num_tokens[split]} as store.json says",
                where=str(self.folder),
                fix=FIX,
            )

    @property
    def d_model(self) -> int:
        """Row width."""
        return self.metadata.d_model

    def read(self, blocks: Sequence[Block], out: Tensor) -> None:
        """Read blocks, one after the other, into `out` [sum of their rows, d_model] of type `metadata.torch_dtype`.

        Raises:
            DataError: A chunk is missing or corrupted; the message names it.
            TryAgainError: The bucket cannot be reached.
        """
        if self.metadata.dtype == "int8":
            stored = torch.empty(len(out), self.metadata.width, dtype=torch.int8)
            self._read(blocks, stored)
            for start in range(0, len(out), DECODE_ROWS):
                out[start : start + DECODE_ROWS] = decode(stored[start : start + DECODE_ROWS])
        else:
            self._read(blocks, out)

    def _read(self, blocks: Sequence[Block], out: Tensor) -> None:
        """Read blocks as they are stored."""
        view = memoryview(out.view(torch.uint8).numpy().reshape(-1).data)
        work, start = [], 0
        for block in blocks:
            stop = start + block.num_rows * self._row_bytes
            work.append((block, view[start:stop]))
            start = stop
        self._chunks.read(work)

    def prefetch(self, blocks: Sequence[Block]) -> None:
        """Say which blocks are read next, so that they come from a bucket meanwhile."""
        self._chunks.prefetch(blocks)

    def stream(self) -> Iterator[tuple[Block, Tensor]]:
        """All blocks once, in stored order, with their values [num_rows, d_model] of type `metadata.torch_dtype`."""
        start = 0
        while start < len(self.blocks):
            stop, num_rows = start, 0
            while stop < len(self.blocks) and (stop == start or num_rows * self._row_bytes < WINDOW_BYTES):
                num_rows += self.blocks[stop].num_rows
                stop += 1
            window = self.blocks[start:stop]
            values = torch.empty(num_rows, self.d_model, dtype=self.metadata.torch_dtype)
            self.read(window, values)
            first = 0
            for block in window:
                yield block, values[first : first + block.num_rows]
                first += block.num_rows
            start = stop

    def rows(self, batch_rows: int) -> Iterator[Tensor]:
        """All rows once, in stored order, as fp32 [<= batch_rows, d_model]; for evaluation."""
        for _, values in self.stream():
            for start in range(0, len(values), batch_rows):
                yield values[start : start + batch_rows].float()

    @property
    def _row_bytes(self) -> int:
        return self.metadata.width * self.metadata.stored_dtype.itemsize

    def _read_chunk(self, name: str, num_bytes: int, num_blocks: int) -> list[Block]:
        file = self.folder / name
        if Path(name).name != name:
            raise missing(name, str(file))
        return read_block_table(file, num_bytes, num_blocks, self.metadata.stored_dtype, self.metadata.width)


def _read_index(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and number of blocks of every chunk."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        chunks = [(str(c["filename"]), int(c["chunk_bytes"]), int(c["chunk_size"])) for c in index["chunks"]]
        config = index["config"]
        plain = config["data_format"] == ["tensor"] and not config["compression"] and not config["encryption"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("the index of the chunks is missing or not valid", where=str(path), fix=FIX) from error
    if not plain:
        raise DataError("the chunks do not hold plain tensors", where=str(path), fix=FIX)
    return chunks
