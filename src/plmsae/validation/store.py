"""The suite over an activation store, as the post-condition of the stage that writes one."""

from __future__ import annotations

import pandas as pd

from plmsae.validation.engine import run_suite
from plmsae.validation.suites import store_suite
from plmsae.validation.verdict import require


def require_sound_store(summary: pd.DataFrame, *, num_rows: int, where: str) -> None:
    """Stop if an activation store is not what it must be.

    Args:
        summary: One row per chunk: chunk (name), num_rows, num_nonfinite (entries that are NaN or infinite), mean_norm
            (mean Euclidean norm of its rows).
        num_rows: Number of rows it must hold in all: one per residue.
        where: The store, for the message.

    Raises:
        DataError: Names column, rule, count and chunks.
    """
    require(
        run_suite(store_suite(num_rows=num_rows), summary),
        where=where,
        fix="run extract_activations again; if it fails again, look at the protein LM and the disk",
    )
