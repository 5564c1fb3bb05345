"""What a language model must beat: residue frequencies, and the counts of both neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.small_lm.sequences import FIRST_RESIDUE, NUM_RESIDUES, encode

EDGE = NUM_RESIDUES  # stands for a terminus or a non-standard letter beside a residue
_STATES = NUM_RESIDUES + 1
PSEUDOCOUNTS = (1.0, 5.0, 20.0, 100.0)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def triples(sequences: Sequence[str], chosen: Sequence[Ints] | None = None) -> Ints:
    """Standard residues with their neighbours.

    Args:
        sequences: Upper-case sequences.
        chosen: Positions of standard residues in the tokens of each sequence (`<cls>` is 0); None: all of them.

    Returns:
        Left, centre, right with values 0..20, where 20 is `EDGE`, [n, 3] in the order of sequences and positions.
    """
    tokens = [encode(sequence).astype(np.int64) - FIRST_RESIDUE for sequence in sequences]
    flat = np.concatenate(tokens)
    flat[(flat < 0) | (flat >= NUM_RESIDUES)] = EDGE
    if chosen is None:
        centre = np.flatnonzero(flat != EDGE)  # never the first or last token: those are <cls> and <eos>
    else:
        starts = np.cumsum([0, *(len(t) for t in tokens[:-1])])
        centre = np.concatenate([start + positions for start, positions in zip(starts, chosen, strict=True)])
    return np.stack([flat[centre - 1], flat[centre], flat[centre + 1]], axis=1)


@dataclass(frozen=True)
class NeighbourModel:
    """p(residue | both neighbours), a mixture of four count models.

    Attributes:
        tables: Probabilities [20] given nothing, [21, 20] given the left neighbour, [21, 20] the right, [441, 20] both.
        weights: Weights of the four in the mixture, [4], sum 1.
        pseudocount: Prior counts, spread as the residue frequencies are, in every row of the tables.
    """

    tables: tuple[Floats, Floats, Floats, Floats]
    weights: Floats
    pseudocount: float

    def components(self, x: Ints) -> Floats:
        """Probability of the centre residue under each of the four, [n, 4]."""
        unigram, left, right, both = self.tables
        pair = x[:, 0] * _STATES + x[:, 2]
        return np.stack(
            [unigram[x[:, 1]], left[x[:, 0], x[:, 1]], right[x[:, 2], x[:, 1]], both[pair, x[:, 1]]], axis=1
        )

    def losses(self, x: Ints) -> Floats:
        """Cross-entropy in nats of each centre residue given its true neighbours, [n]."""
        return np.asarray(-np.log(self.components(x) @ self.weights), dtype=np.float64)

    def unigram_losses(self, x: Ints) -> Floats:
        """Cross-entropy in nats of each centre residue given nothing, [n]."""
        return np.asarray(-np.log(self.tables[0][x[:, 1]]), dtype=np.float64)


def fit(train: Ints, valid: Ints, *, iterations: int = 100) -> NeighbourModel:
    """Count on `train`; choose the pseudocount and, by expectation maximisation, the mixture's weights on `valid`.

    Interpolation of counts on held-out data: Jelinek and Mercer 1980.
    """

    def counts(index: Ints, rows: int) -> Floats:
        flat = np.bincount(index * NUM_RESIDUES + train[:, 1], minlength=rows * NUM_RESIDUES)
        return flat.reshape(rows, NUM_RESIDUES).astype(np.float64)

    raw = (
        counts(train[:, 0], _STATES),
        counts(train[:, 2], _STATES),
        counts(train[:, 0] * _STATES + train[:, 2], _STATES**2),
    )
    unigram = (raw[0].sum(0) + 1) / (raw[0].sum() + NUM_RESIDUES)
    best: NeighbourModel | None = None
    best_loss = np.inf
    for pseudocount in PSEUDOCOUNTS:
        left, right, both = ((t + pseudocount * unigram) / (t.sum(1, keepdims=True) + pseudocount) for t in raw)
        model = NeighbourModel((unigram, left, right, both), np.full(4, 0.25), pseudocount)
        p, weights = model.components(valid), model.weights
        for _ in range(iterations):
            share = p * weights
            weights = (share / share.sum(1, keepdims=True)).mean(0)
        model = NeighbourModel(model.tables, weights, pseudocount)
        loss = float(model.losses(valid).mean())
        if loss < best_loss:
            best, best_loss = model, loss
    if best is None:
        raise AssertionError("no pseudocount was tried")
    return best
