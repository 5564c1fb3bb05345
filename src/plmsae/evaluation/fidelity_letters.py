"""Fidelity by amino acid: which letters the reconstruction keeps and which it loses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats, group_sums, percentile_bounds, resampled_sums
from plmsae.evaluation.fidelity_quantities import compare, loss_names, means
from plmsae.evaluation.protocols import AMINO_ACIDS

COLUMNS = ("protocol", "amino_acid", "num_residues", "num_proteins", "quantity", "value", "low", "high")


def by_amino_acid(
    sums: dict[str, Floats],
    owners: NDArray[np.int64],
    protocols: Sequence[str],
    interventions: Sequence[str],
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """The quantities of `fidelity_quantities.compare` for each of the 20 amino acids.

    Args:
        sums: `splice.Sums.of_letter` of all sequences, [num_sequences, 20] each.
        owners: [num_sequences] protein of each sequence, the unit of the bootstrap.
        protocols: Protocols that were measured.
        interventions: Interventions that were measured, `clean` first.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Seed; with it a resample draws the proteins that every other quantity's draws.

    Returns:
        `COLUMNS`, a row per protocol, amino acid and quantity; `num_residues` and `num_proteins` say how many are
        scored. NaN for an amino acid that is not. Values per residue.
    """
    names = loss_names(interventions)

    def statistics(values: Floats) -> dict[str, Floats]:
        return compare({name: means(values[:, place], values[:, 0]) for place, name in enumerate(names, start=1)})

    rows = []
    for protocol in protocols:
        stacked = np.stack([sums[f"{protocol}_{name}"] for name in ("num", *names)], axis=1)
        by_protein = group_sums(stacked, owners)
        point = statistics(by_protein.sum(axis=0, keepdims=True))
        samples = statistics(resampled_sums(by_protein, num_resamples, seed))
        bounds = {quantity: percentile_bounds(samples[quantity], confidence) for quantity in point}
        residues = by_protein[:, 0].sum(axis=0)
        proteins = (by_protein[:, 0] > 0).sum(axis=0)
        for place, letter in enumerate(AMINO_ACIDS):
            for quantity, values in point.items():
                low, high = (bound[place] for bound in bounds[quantity])
                counts = int(residues[place]), int(proteins[place])
                rows.append((protocol, letter, *counts, quantity, values[0, place], low, high))
    return pd.DataFrame(rows, columns=list(COLUMNS))
