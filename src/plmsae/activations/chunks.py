"""Chunk files on a disk: where their blocks lie, and how they are read.

The layout is LitData's: a chunk starts with the number of its items and their offsets (uint32, little endian); an
item is its size (uint32, little endian), type code, rank and shape (uint32, big endian), then the values. Blocks are
read with `preadv` from the page cache: as fast as a memory map, but a truncated file is an error and not a SIGBUS.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from plmsae.errors import DataError

FIX = "restore it with `dvc checkout`, or extract again: dvc repro --force extract_activations"
_HEADER = 20
_TYPE_CODES = {torch.bfloat16: (10,), torch.float16: (8, 9), torch.float32: (0, 1), torch.int8: (12,)}


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        chunk: Name of the chunk that holds it.
        offset: Byte of the chunk where its values start.
        num_rows: Its number of rows.
        sha256: Hex sha256 of its values, where the store recorded it (a remote one).
    """

    chunk: str
    offset: int
    num_rows: int
    sha256: str = ""


class Chunks(Protocol):
    """Where the chunks of a split are."""

    def read(self, work: Sequence[tuple[Block, memoryview]]) -> None:
        """Read blocks, each into its own memory of exactly its size.

        Raises:
            DataError: A chunk is missing or corrupted; the message names it.
        """
        ...

    def prefetch(self, blocks: Sequence[Block]) -> None:
        """These blocks are read next: fetch them meanwhile, if that helps."""
        ...


class LocalChunks:
    """Chunk files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, work: Sequence[tuple[Block, memoryview]]) -> None:
        """See `Chunks`."""
        folder = str(self.folder)
        for block, out in work:
            file = f"{folder}/{block.chunk}"  # of thousands of chunks, a path object of each costs as much as its rows
            try:
                num_read = _read_at(file, block.offset, out)
            except OSError as error:
                raise DataError(f"chunk '{block.chunk}' cannot be read", where=f"{file}: {error}", fix=FIX) from error
            if num_read != out.nbytes:
                raise corrupted(block.chunk, file, "is shorter than its index says")

    def prefetch(self, blocks: Sequence[Block]) -> None:
        """Nothing to do: the operating system reads ahead."""


def _read_at(file: str, offset: int, out: memoryview) -> int:
    """Fill `out` from a byte of a file; returns how much of it the file had."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < out.nbytes:  # a call reads at most 2 GiB
            num_read = os.preadv(descriptor, [out[done:]], offset + done)
            if num_read == 0:
                break
            done += num_read
        return done
    finally:
        os.close(descriptor)


def read_block_table(file: Path, num_bytes: int, num_blocks: int, dtype: torch.dtype, width: int) -> list[Block]:
    """The blocks of a chunk file, from the table and the headers in it.

    Args:
        file: The chunk.
        num_bytes: Its size according to the index.
        num_blocks: Its number of blocks according to the index.
        dtype: Type of the values.
        width: Values of a row.

    Raises:
        DataError: The file is missing or is not such a chunk; the message names it.
    """
    name, where = file.name, str(file)
    if not file.is_file():
        raise missing(name, where)
    if file.stat().st_size != num_bytes:
        raise corrupted(name, where, f"has {file.stat().st_size} bytes, not {num_bytes}")
    blocks = []
    with file.open("rb") as handle:
        table = np.frombuffer(handle.read(4 * (num_blocks + 2)), dtype="<u4").astype(np.int64)
        if len(table) != num_blocks + 2 or table[0] != num_blocks or table[-1] != num_bytes:
            raise corrupted(name, where, "has a broken table of blocks")
        for start, stop in zip(table[1:-1].tolist(), table[2:].tolist(), strict=True):
            handle.seek(start)
            header = handle.read(_HEADER)
            if len(header) < _HEADER:
                raise corrupted(name, where, "has a broken block header")
            size = struct.unpack("<I", header[:4])[0]
            code, rank, num_rows, num_columns = struct.unpack(">IIII", header[4:])
            num_values = (stop - start - _HEADER) // dtype.itemsize
            if size != stop - start - 4 or code not in _TYPE_CODES[dtype] or rank != 2:
                raise corrupted(name, where, "has a broken block header")
            if num_columns != width or num_rows * num_columns != num_values:
                raise corrupted(name, where, f"holds a block of shape [{num_rows}, {num_columns}], not [rows, {width}]")
            blocks.append(Block(name, start + _HEADER, num_rows))
    return blocks


def corrupted(chunk: str, where: str, what: str, fix: str = FIX) -> DataError:
    """The error for a chunk that is not what it should be."""
    return DataError(f"chunk '{chunk}' is corrupted: it {what}", where=where, fix=fix)


def missing(chunk: str, where: str, fix: str = FIX) -> DataError:
    """The error for a chunk that is not there."""
    return DataError(f"chunk '{chunk}' is missing", where=where, fix=fix)
