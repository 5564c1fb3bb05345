"""Post-conditions of an activation store: every row read back, counted and found finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch

from plmsae.activations.blocks import BlockStore
from plmsae.activations.metadata import read_metadata
from plmsae.errors import DataError


def check_store(folder: Path, expected_rows: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Read a whole store and check it; the values of a remote one come back from the bucket.

    Args:
        folder: Store folder.
        expected_rows: Split -> number of residues, where the sequences are known; it must hold all but the masked ones.

    Returns:
        One row per chunk: split, chunk, num_rows, num_nonfinite (rows), mean_norm.

    Raises:
        DataError: A chunk is missing, corrupted or not of the described type and width; counts differ; rows are not
            finite. The message names the file.
    """
    metadata = read_metadata(folder)
    summary: dict[tuple[str, str], list[float]] = {}
    for split, num_tokens in metadata.num_tokens.items():
        num_masked = (metadata.num_masked or {}).get(split, 0)
        if expected_rows is not None and expected_rows.get(split) != num_tokens + num_masked:
            raise DataError(
                f"split '{split}' holds {num_tokens} rows for {expected_rows.get(split)} residues"
                + (f", of which {num_masked} are left out" if num_masked else ""),
                where=str(folder / split),
                fix="extract again",
            )
        store = BlockStore(folder, split)
        for block, values in store.stream():
            norms = values.float().norm(dim=1)
            num_nonfinite = int((~torch.isfinite(norms)).sum())
            row = summary.setdefault((split, block.chunk), [0, 0, 0.0])
            row[0] += block.num_rows
            row[1] += num_nonfinite
            row[2] += float(norms.double().sum())
    table = pd.DataFrame(
        [
            (split, chunk, int(rows), int(nonfinite), total / rows)
            for (split, chunk), (rows, nonfinite, total) in summary.items()
        ],
        columns=["split", "chunk", "num_rows", "num_nonfinite", "mean_norm"],
    )
    bad = table[table["num_nonfinite"] > 0]
    if len(bad):
        first = bad.iloc[0]
        raise DataError(
            f"{first['num_nonfinite']} rows of chunk '{first['chunk']}' are not finite",
            where=f"{metadata.location or folder}/{first['split']}/{first['chunk']}",
            fix="extract again, with dtype bfloat16 or float32 if float16 overflows",
        )
    return table
