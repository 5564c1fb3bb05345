"""Random access to the row blocks of one split, straight from the chunk files.

The layout is LitData's: a chunk starts with the number of its items and their offsets (uint32, little endian); an
item is its size (uint32, little endian), type code, rank and shape (uint32, big endian), then the values. Blocks are
read with `readinto` from the page cache: as fast as a memory map, but a truncated file is an error and not a SIGBUS.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plmsae.activations.metadata import StoreMetadata, read_metadata
from plmsae.errors import DataError, UserError, did_you_mean

INDEX = "index.json"
_HEADER = 20
_TYPE_CODES = {torch.bfloat16: (10,), torch.float16: (8, 9), torch.float32: (0, 1)}
_FIX = "restore it with `dvc checkout`, or extract again: dvc repro --force extract_activations"


@dataclass(frozen=True)
class Block:
    """One block: the chunk file, the byte where its values start, and its number of rows."""

    file: Path
    offset: int
    num_rows: int


class BlockStore:
    """The blocks of one split of a store.

    Args:
        folder: Store folder, with `store.json`.
        split: `train` or `valid`.

    Raises:
        UserError: The store has no such split.
        DataError: A chunk is missing, corrupted, or does not match `store.json`; the message names the file.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.metadata: StoreMetadata = read_metadata(folder)
        if split not in self.metadata.num_tokens:
            raise UserError(
                f"the store has no split '{split}'",
                where=str(folder),
                fix=did_you_mean(split, self.metadata.num_tokens),
            )
        self.folder = folder / split
        self.blocks: list[Block] = _read_index(self.folder, self.metadata)
        self.num_rows = sum(block.num_rows for block in self.blocks)
        if self.num_rows != self.metadata.num_tokens[split]:
            raise DataError(
                f"the chunks hold {self.num_rows} rows, not {self.metadata.num_tokens[split]} as store.json says",
                where=str(self.folder),
                fix=_FIX,
            )

    @property
    def d_model(self) -> int:
        """Row width."""
        return self.metadata.d_model

    def read(self, block: Block, out: Tensor) -> None:
        """Read a block into `out` [num_rows, d_model] of the stored type."""
        view = out.view(torch.uint8).numpy().reshape(-1).data
        try:
            with block.file.open("rb", buffering=0) as handle:
                handle.seek(block.offset)
                num_read = handle.readinto(view)
        except OSError as error:
            raise DataError(
                f"chunk '{block.file.name}' cannot be read", where=f"{block.file}: {error}", fix=_FIX
            ) from error
        if num_read != view.nbytes:
            raise _corrupted(block.file, "is shorter than its index says")

    def rows(self, batch_rows: int) -> Iterator[Tensor]:
        """All rows once, in stored order, as fp32 [<= batch_rows, d_model]; for evaluation."""
        for block in self.blocks:
            values = torch.empty(block.num_rows, self.d_model, dtype=self.metadata.torch_dtype)
            self.read(block, values)
            for start in range(0, block.num_rows, batch_rows):
                yield values[start : start + batch_rows].float()


def _read_index(folder: Path, metadata: StoreMetadata) -> list[Block]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        chunks = [(str(c["filename"]), int(c["chunk_bytes"]), int(c["chunk_size"])) for c in index["chunks"]]
        config = index["config"]
        plain = config["data_format"] == ["tensor"] and not config["compression"] and not config["encryption"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("the index of the chunks is missing or not valid", where=str(path), fix=_FIX) from error
    if not plain:
        raise DataError("the chunks do not hold plain tensors", where=str(path), fix=_FIX)
    return [block for chunk in chunks for block in _read_chunk(folder, *chunk, metadata)]


def _read_chunk(folder: Path, name: str, num_bytes: int, num_blocks: int, metadata: StoreMetadata) -> list[Block]:
    file = folder / name
    if Path(name).name != name or not file.is_file():
        raise DataError(f"chunk '{name}' is missing", where=str(file), fix=_FIX)
    if file.stat().st_size != num_bytes:
        raise _corrupted(file, f"has {file.stat().st_size} bytes, not {num_bytes}")
    blocks = []
    with file.open("rb") as handle:
        table = np.frombuffer(handle.read(4 * (num_blocks + 2)), dtype="<u4").astype(np.int64)
        if len(table) != num_blocks + 2 or table[0] != num_blocks or table[-1] != num_bytes:
            raise _corrupted(file, "has a broken table of blocks")
        for start, stop in zip(table[1:-1].tolist(), table[2:].tolist(), strict=True):
            handle.seek(start)
            header = handle.read(_HEADER)
            if len(header) < _HEADER:
                raise _corrupted(file, "has a broken block header")
            size = struct.unpack("<I", header[:4])[0]
            code, rank, num_rows, width = struct.unpack(">IIII", header[4:])
            num_values = (stop - start - _HEADER) // metadata.torch_dtype.itemsize
            if size != stop - start - 4 or code not in _TYPE_CODES[metadata.torch_dtype] or rank != 2:
                raise _corrupted(file, "has a broken block header")
            if width != metadata.d_model or num_rows * width != num_values:
                raise _corrupted(file, f"holds a block of shape [{num_rows}, {width}], not [rows, {metadata.d_model}]")
            blocks.append(Block(file, start + _HEADER, num_rows))
    return blocks


def _corrupted(file: Path, what: str) -> DataError:
    return DataError(f"chunk '{file.name}' is corrupted: it {what}", where=str(file), fix=_FIX)
