"""What probes look at: latents, neurons, and the residue's letter alone or with its neighbours, residue by residue.

`letters` is the letter of the residue, one unit per amino acid; `window` the letters from `window` residues before to
as many after it, one unit per amino acid and place. What a probe on latents finds beyond them is not in the sequence
next to the residue. For whole proteins every unit is pooled over residues: `letters` is then the composition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.labels import Ints
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.residue_letters import LETTERS, letter_codes
from plmsae.evaluation.top_sequences import Runs
from plmsae.evaluation.unit_stream import unit_batches
from plmsae.evaluation.units import Units

POOLS = ("mean", "max")


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some sequences.

    Attributes:
        rows: [B] rows in the table of proteins.
        starts: [B + 1] residues before each of them in the batch.
        features: By name [R, n], CSR fp32.
    """

    rows: Ints
    starts: Ints
    features: dict[str, Sparse]


def feature_batches(
    inputs: Inputs,
    proteins: pd.DataFrame,
    methods: Sequence[Units],
    *,
    window: int,
    title: str,
    max_tokens: int,
    threads: int,
) -> Iterator[FeatureBatch]:
    """Features of all methods, of the letters and of their window, batch by batch.

    Args:
        inputs: Model, layer and hook.
        proteins: Rows of `sequences.parquet`, with an index from 0.
        methods: Units.
        window: Residues to each side.
        title: Name on the progress line.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once.
    """
    sequences = proteins["sequence"].tolist()
    for batch in unit_batches(inputs, proteins, methods, title=title, max_tokens=max_tokens, threads=threads):
        own = [sequences[row] for row in batch.rows]
        features = {method.method: x for method, x in zip(methods, batch.activations)}
        features |= {"letters": letter_matrix(own, 0), "window": letter_matrix(own, window)}
        yield FeatureBatch(batch.rows, batch.starts, features)


def letter_matrix(sequences: Sequence[str], window: int) -> Sparse:
    """[R, 20 (2 window + 1)] CSR of 0/1: the letters around each residue, place after place; not across ends."""
    codes = letter_codes(sequences)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(codes))[:, None] + np.arange(-window, window + 1)
    inside = (places >= starts[sequence][:, None]) & (places < starts[sequence + 1][:, None])
    code = codes[np.where(inside, places, 0)]
    on = inside & (code >= 0)
    columns = code + len(LETTERS) * np.arange(2 * window + 1)
    pointers = np.concatenate([[0], np.cumsum(on.sum(axis=1))])
    shape = (len(codes), len(LETTERS) * (2 * window + 1))
    return sparse.csr_matrix((np.ones(pointers[-1], dtype=np.float32), columns[on], pointers), shape=shape)


def unit_names(feature: str, window: int, methods: Sequence[Units]) -> list[str]:
    """Names for people of all units of a feature set, e.g. `letter K`, `letter K at -3`, `latent 17`."""
    if feature == "letters":
        return [f"letter {letter}" for letter in LETTERS]
    if feature == "window":
        return [f"letter {letter} at {place:+d}" for place in range(-window, window + 1) for letter in LETTERS]
    method = next(each for each in methods if each.method == feature)
    return [method.unit_name(unit) for unit in range(method.num_units)]


def pooled(x: Sparse, starts: Ints, how: str) -> Sparse:
    """Mean or largest activation of each unit over each sequence.

    Args:
        x: [R, n] >= 0.
        starts: [B + 1] residues before each sequence; none is empty.
        how: `mean` or `max`.

    Returns:
        [B, n] CSR fp64.
    """
    num_sequences = len(starts) - 1
    runs = Runs.of(x, starts, np.arange(num_sequences))
    if how == "max":
        values = runs.highest.astype(np.float64)
    else:
        sums = np.add.reduceat(runs.values.astype(np.float64), runs.pointers[:-1]) if len(runs.units) else runs.values
        values = sums / np.diff(starts)[runs.sequences]
    return sparse.csr_matrix((values, (runs.sequences, runs.units)), shape=(num_sequences, x.shape[1]))
