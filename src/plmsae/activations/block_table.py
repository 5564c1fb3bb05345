"""`blocks.parquet` of a remote store: where each block lies in its chunk, and its sha256.

The table is part of the stage's output and so under its manifest: what comes from the bucket is verified block by
block against it, and reading needs no look into the chunks first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from plmsae.activations.chunks import Block
from plmsae.errors import DataError

TABLE = "blocks.parquet"
_COLUMNS = ["split", "chunk", "offset", "num_rows", "sha256"]
_FIX = "restore it with `dvc checkout`, or extract again: dvc repro --force extract_activations"


def hash_blocks(file: Path, blocks: Sequence[Block], row_bytes: int) -> list[Block]:
    """The blocks of a chunk file with the sha256 of their values."""
    hashed = []
    with file.open("rb") as handle:
        for block in blocks:
            handle.seek(block.offset)
            digest = hashlib.sha256(handle.read(block.num_rows * row_bytes)).hexdigest()
            hashed.append(Block(block.chunk, block.offset, block.num_rows, digest))
    return hashed


def write_table(folder: Path, blocks: Mapping[str, Sequence[Block]]) -> None:
    """Write the table of a store: split -> its blocks, in stored order."""
    rows: list[tuple[Any, ...]] = [
        (split, block.chunk, block.offset, block.num_rows, block.sha256)
        for split, members in blocks.items()
        for block in members
    ]
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({"offset": "int64", "num_rows": "int64"})
    table.to_parquet(folder / TABLE, index=False)


def read_table(folder: Path, split: str) -> list[Block]:
    """The blocks of a split, in stored order.

    Raises:
        DataError: The table is missing or not valid.
    """
    path = folder / TABLE
    try:
        table = pd.read_parquet(path, columns=_COLUMNS, filters=[("split", "==", split)])
        chunks, hashes = table["chunk"].tolist(), table["sha256"].tolist()
        offsets, num_rows = table["offset"].tolist(), table["num_rows"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise DataError("the table of the blocks is missing or not valid", where=str(path), fix=_FIX) from error
    return [Block(*row) for row in zip(chunks, offsets, num_rows, hashes, strict=True)]
