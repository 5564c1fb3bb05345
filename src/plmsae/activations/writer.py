"""Row blocks as LitData chunks, written in this process.

LitData's `optimize()` starts worker processes, empties cache folders under the system's temporary folder and stamps
the time into its index. Its chunk writer alone does none of that, so the chunks come from `BinaryWriter` and the
index is put together here; a stock `litdata.StreamingDataset` reads the result, from a disk or from S3.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from litdata.streaming.serializers import TensorSerializer
from litdata.streaming.writer import BinaryWriter
from torch import Tensor

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.checksums import sha256_bytes
from plmsae.params import canonical_json

INDEX = "index.json"
CHUNK_BYTES = 64 * 2**20  # what object stores and prefetching readers like; a chunk holds whole blocks
_BFLOAT16_CODE = 10  # of LitData's table of tensor types


class _BlockSerializer(TensorSerializer):  # type: ignore[misc]
    """LitData's tensor format; its own serialiser goes through numpy, which has no bfloat16."""

    def serialize(self, item: Tensor) -> tuple[bytes, str | None]:
        if item.dtype != torch.bfloat16:
            return super().serialize(item)  # type: ignore[no-any-return]
        header = struct.pack(f">II{item.dim()}I", _BFLOAT16_CODE, item.dim(), *item.shape)
        return header + item.contiguous().view(torch.uint8).numpy().tobytes(), None


def write_chunks(folder: Path, rows: Tensor, order: Tensor, block_rows: int) -> dict[str, Any]:
    """Write rows, in the given order, as blocks into chunk files.

    Args:
        folder: New folder for the chunk files.
        rows: [n, d] in the type to store.
        order: int64 [n], the permutation that shuffles them.
        block_rows: Rows of a block; the last one takes what is left.

    Returns:
        LitData's index of these chunks: `chunks` (file name, bytes, number of blocks) and `config`; no rows, no chunks.
    """
    folder.mkdir(parents=True)
    if not len(rows):
        return {"chunks": [], "config": None}
    block_bytes = block_rows * rows.shape[1] * rows.element_size()
    writer = BinaryWriter(
        str(folder), chunk_size=max(1, CHUNK_BYTES // block_bytes), serializers={"tensor": _BlockSerializer()}
    )
    for index, start in enumerate(range(0, len(rows), block_rows)):
        writer.add_item(index, rows[order[start : start + block_rows]])
    writer.done()
    (index_file,) = folder.glob(f"*.{INDEX}")
    index_data: dict[str, Any] = json.loads(index_file.read_text(encoding="utf-8"))
    index_file.unlink()
    return index_data


def write_index(folder: Path, parts: list[dict[str, Any]]) -> None:
    """Write LitData's `index.json` for chunk files of several `write_chunks` calls that now lie in `folder`.

    At least one of them must have had rows.

    `updated_at`, by which LitData tells whether its cache of a remote store is stale, is a hash of the index here.
    """
    config = next(part["config"] for part in parts if part["chunks"])
    index = {"chunks": [chunk for part in parts for chunk in part["chunks"]], "config": config}
    index["updated_at"] = sha256_bytes(canonical_json(index).encode())[:16]
    write_text(folder / INDEX, json.dumps(index, sort_keys=True, indent=1) + "\n")
