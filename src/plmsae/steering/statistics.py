"""Means per residue with percentile intervals over proteins (Efron 1979), the latent and its controls paired.

A resample draws as many proteins as there are, with replacement, and every quantity is recomputed from the resampled
sums, so that the difference between latent and controls has an interval of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from plmsae.steering.measure import Batch, Change, Floats

_RESAMPLES_AT_ONCE = 250
Sums = dict[str, Floats]


@dataclass(frozen=True)
class Estimate:
    """Means per residue with lower and upper bounds, scalars or [20]."""

    value: Floats
    low: Floats
    high: Floats

    def text(self, digits: int = 3) -> str:
        """For people, e.g. `0.412 [0.398, 0.427]`."""
        return f"{self.value:.{digits}g} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


def sums_of(batch: Batch, lengths: Sequence[int]) -> Sums:
    """Sums over the residues of each of B sequences.

    Args:
        batch: What was measured.
        lengths: Residues of each sequence.

    Returns:
        Name -> fp64 [B, ...]: `num`; `kl`, `mean_abs`, `changed` of the clamp; the same with `random_`, [B, n], of
        its n controls; `clean`, `probability` and `random_probability` [B, 20].
    """
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def by_sequence(values: Floats) -> Floats:
        summed: Floats = np.add.reduceat(np.asarray(values, dtype=np.float64), starts, axis=0)
        return summed

    def each(name: str, changes: Sequence[Change]) -> Floats:
        columns = [_quantity(change, name) for change in changes]
        return by_sequence(np.stack(columns, axis=1) if columns else np.zeros((sum(lengths), 0)))

    names = ("kl", "mean_abs", "changed")
    probability = [change.probability for change in batch.controls]
    return {
        "num": np.asarray(lengths, dtype=np.float64),
        **{name: by_sequence(_quantity(batch.latent, name)) for name in names},
        **{f"random_{name}": each(name, batch.controls) for name in names},
        "clean": by_sequence(batch.clean),
        "probability": by_sequence(batch.latent.probability),
        "random_probability": by_sequence(np.mean(probability, axis=0)),
    }


def _quantity(change: Change, name: str) -> Floats:
    if name == "changed":
        changed: Floats = (change.before != change.after).astype(np.float64)
        return changed
    return change.kl if name == "kl" else change.mean_abs


def estimates(
    sums: Mapping[str, Floats], owners: np.ndarray, *, num_resamples: int, confidence: float, seed: int
) -> dict[str, Estimate]:
    """Means per residue over all proteins, and their intervals.

    Args:
        sums: As `sums_of` gives them, all sequences in one order.
        owners: int64 [B], protein of each sequence; a protein that was cut into windows is one unit of the bootstrap.
        num_resamples: Number of resamples.
        confidence: Coverage, e.g. 0.95.
        seed: Seed.

    Returns:
        For each of `kl`, `mean_abs`, `changed` and `probability`: the clamp's, the mean of its controls' under
        `random_<name>`, and the difference under `excess_<name>`; and `clean`, the probabilities without an edit.
    """
    by_protein = {name: _grouped(values, owners) for name, values in sums.items()}
    num_proteins = len(by_protein["num"])
    point = _quantities({name: values.sum(axis=0, keepdims=True) for name, values in by_protein.items()})
    rng = np.random.default_rng(seed)
    pieces = []
    for first in range(0, num_resamples, _RESAMPLES_AT_ONCE):  # bounds the memory of the weights
        count = min(_RESAMPLES_AT_ONCE, num_resamples - first)
        weights = rng.multinomial(num_proteins, np.full(num_proteins, 1 / num_proteins), size=count).astype(np.float64)
        # Not a matrix product: its rounding depends on how many cores BLAS finds.
        drawn = {name: np.einsum("rp,p...->r...", weights, values) for name, values in by_protein.items()}
        pieces.append(_quantities(drawn))
    tail = 50.0 * (1.0 - confidence)
    found = {}
    for name, value in point.items():
        low, high = np.percentile(np.concatenate([piece[name] for piece in pieces]), [tail, 100.0 - tail], axis=0)
        found[name] = Estimate(value[0], low, high)
    return found


def _quantities(sums: Mapping[str, Floats]) -> Sums:
    """The leading axis is the resample."""
    found: Sums = {"clean": sums["clean"] / sums["num"][:, None]}
    for name in ("kl", "mean_abs", "changed"):
        found[name] = sums[name] / sums["num"]
        found[f"random_{name}"] = sums[f"random_{name}"].mean(axis=1) / sums["num"]
    for name in ("probability", "random_probability"):
        found[name] = sums[name] / sums["num"][:, None]
    for name in ("kl", "mean_abs", "changed", "probability"):
        found[f"excess_{name}"] = found[name] - found[f"random_{name}"]
    return found


def _grouped(values: Floats, owners: np.ndarray) -> Floats:
    summed = np.zeros((int(owners.max()) + 1, *values.shape[1:]))
    np.add.at(summed, owners, values)
    return summed
