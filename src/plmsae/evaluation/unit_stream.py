"""Normalised activations of several methods over some proteins, batch by batch; nothing of a batch is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.units import Units
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class UnitBatch:
    """Some sequences, one after another.

    Attributes:
        rows: [B] their rows in the table of proteins.
        starts: [B + 1] residues before each of them in the batch.
        activations: Per method [R, n], CSR fp32, normalised by each unit's maximum; residues of the rows in order.
    """

    rows: Ints
    starts: Ints
    activations: Sequence[Sparse]


def unit_batches(
    inputs: Inputs, proteins: pd.DataFrame, methods: Sequence[Units], *, title: str, max_tokens: int, threads: int
) -> Iterator[UnitBatch]:
    """Run the model and all methods over sequences, longest first.

    Args:
        inputs: Model, layer and hook.
        proteins: Rows of `sequences.parquet`, with an index from 0.
        methods: Units to encode with.
        title: Name on the progress line.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
    """
    sequences, accessions = proteins["sequence"].tolist(), proteins["accession"].tolist()
    lengths = proteins["length"].to_numpy().astype(np.int64)
    config = inputs.sae.config

    def run(rows: Ints) -> UnitBatch:
        tokens = inputs.plm.tokenize([sequences[row] for row in rows], [accessions[row] for row in rows])
        x = inputs.plm.hidden(tokens, config.layer, config.hook)
        starts = np.concatenate([[0], np.cumsum(lengths[rows])]).astype(np.int64)
        return UnitBatch(rows, starts, [method.activations(x) for method in methods])

    with Progress(title, int(lengths.sum()), "residues") as progress:
        for batch in ordered_map(run, length_sorted_batches(lengths, max_tokens), threads):
            yield batch
            progress.update(int(batch.starts[-1]))
