"""How far hidden states computed with bf16 products are from those of fp32, on a sample of the proteins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from plmsae.plms.base import Place, ProteinLM

SAMPLE_RESIDUES = 4096


def sample(sequences: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Random train proteins, as many as have `SAMPLE_RESIDUES` residues together, or one if it has more."""
    table = sequences[sequences["split"] == "train"]
    table = table.iloc[np.random.default_rng([seed, 3]).permutation(len(table))]
    ends = table["sequence"].str.len().cumsum()
    return table[(ends <= SAMPLE_RESIDUES) | (np.arange(len(table)) == 0)]


def relative_errors(plm: ProteinLM, exact: ProteinLM, proteins: pd.DataFrame, places: Sequence[Place]) -> list[float]:
    """sqrt(sum ||h - h_exact||^2 / sum ||h_exact||^2) over all residues, for each place.

    Args:
        plm: The model.
        exact: The same in fp32.
        proteins: Columns accession and sequence.
        places: Where to compare.

    Raises:
        DataError: A sequence cannot be tokenised.
    """
    sums = np.zeros((2, len(places)))
    for accession, sequence in zip(proteins["accession"], proteins["sequence"], strict=True):
        tokens = exact.tokenize([sequence], [accession])
        pairs = zip(plm.hidden_at(tokens, places), exact.hidden_at(tokens, places), strict=True)
        for number, (found, wanted) in enumerate(pairs):
            sums[0, number] += float((found - wanted).double().square().sum())
            sums[1, number] += float(wanted.double().square().sum())
    return [float(error) for error in np.sqrt(sums[0] / sums[1])]
