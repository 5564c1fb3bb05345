"""A seeded sample of residues of test proteins with their hidden states, for what is too slow to do on all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from plmsae.evaluation.inputs import Inputs
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map


@dataclass(frozen=True)
class ResidueSample:
    """Residues of test proteins.

    Attributes:
        table: [N] accession, offset, position (1-based, UniProt) and residue.
        x: Hidden states [N, d_model], raw, fp32.
        num_residues: How many the sample was taken from.
    """

    table: pd.DataFrame
    x: Tensor
    num_residues: int


def sample_residues(
    inputs: Inputs, *, max_proteins: int | None, num_tokens: int, max_tokens: int, threads: int, seed: int
) -> ResidueSample:
    """Sample residues without replacement, every residue of the subset alike.

    Args:
        inputs: Proteins, model, and the SAE whose layer and hook are read.
        max_proteins: A seeded subset of this many test proteins; None for all.
        num_tokens: Residues; all of them where there are fewer.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset and sample; the sample does not depend on how sequences are batched.

    Raises:
        DataError: There is no test protein.
    """
    proteins = inputs.split("test", max_proteins, seed)
    lengths = proteins["length"].to_numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rng = np.random.default_rng([seed, 1])
    chosen = np.sort(rng.permutation(int(starts[-1]))[:num_tokens])
    rows = np.searchsorted(starts, chosen, side="right") - 1
    places = chosen - starts[rows]
    wanted = np.flatnonzero(np.bincount(rows, minlength=len(proteins)))
    sequences, accessions = proteins["sequence"].tolist(), proteins["accession"].tolist()
    config = inputs.sae.config

    def run(batch: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
        """Numbers of the sampled residues in this batch, and their hidden states."""
        own = wanted[batch]
        tokens = inputs.plm.tokenize([sequences[row] for row in own], [accessions[row] for row in own])
        hidden = inputs.plm.hidden(tokens, config.layer, config.hook)
        first = np.concatenate([[0], np.cumsum(lengths[own])])
        found = [np.flatnonzero(rows == row) for row in own]
        inside = np.concatenate([start + places[part] for start, part in zip(first, found)])
        return np.concatenate(found), hidden[torch.from_numpy(inside)]

    x = torch.empty(len(chosen), config.d_model)
    for numbers, hidden in ordered_map(run, length_sorted_batches(lengths[wanted], max_tokens), threads):
        x[torch.from_numpy(numbers)] = hidden
    table = pd.DataFrame(
        {
            "accession": proteins["accession"].to_numpy()[rows],
            "offset": proteins["offset"].to_numpy()[rows],
            "position": places + proteins["offset"].to_numpy()[rows] + 1,
            "residue": [sequences[row][place] for row, place in zip(rows, places)],
        }
    )
    return ResidueSample(table, x, int(starts[-1]))
