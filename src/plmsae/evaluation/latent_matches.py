"""How the latents of two SAEs match: chosen on validation proteins, confirmed on test, beside a permuted null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plmsae.evaluation.bootstrap import Floats, Interval
from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.matching import (
    NO_PARTNER,
    Correlation,
    Ints,
    PairSums,
    best_match,
    decoder_cosines,
    one_to_one,
    share_above,
)
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.units import Units

# The directions in which a match is looked for: whose latents are counted.
KINDS = ("of_other", "of_first", "one_to_one")
# Latents that fire often match in dictionaries that share nothing: shares are also given by the share of residues.
RATES = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
# Of the dictionary as it is and of the permuted one: kind -> sums.
MatchSums = list[dict[str, PairSums]]


@dataclass(frozen=True)
class RateClass:
    """Latents of the other SAE that fire on more than `low` and at most `high` of the validation residues.

    Attributes:
        low: See above.
        high: See above.
        number: Latents.
        shares: Share of them whose match reaches each threshold on test.
        null_number: Latents of the permuted dictionary that fire so often.
        null: Their shares.
    """

    low: float
    high: float
    number: int
    shares: list[Interval]
    null_number: int
    null: list[Interval]


@dataclass(frozen=True)
class Matched:
    """Matches of another SAE's m latents with the first SAE's n.

    Attributes:
        thresholds: Similarities of the shares.
        shares: Kind -> share of the latents that fire on both splits whose match reaches each threshold on test.
            `of_other`: the other SAE's latents, best match in the first; `of_first` the other way round; `one_to_one`
            the other SAE's latents in the assignment.
        null: The same for the other SAE's permuted dictionary.
        by_rate: `of_other` by how often latents fire.
        partners: Kind -> match of every latent, `NO_PARTNER` for none.
        correlations: Kind -> its r on validation and on test; NaN for none.
        fired: Kind -> latents that count.
        cosines: Decoder cosine of every latent of the other SAE to its nearest atom in the first, and that atom; None
            where widths differ.
        cosine_shares: Share of all atoms at or above each threshold; None where widths differ.
        cosine_null: The same for the permuted dictionary.
    """

    thresholds: Sequence[float]
    shares: dict[str, list[Interval]]
    null: dict[str, list[Interval]]
    by_rate: list[RateClass]
    partners: dict[str, Ints]
    correlations: dict[str, tuple[Floats, Floats]]
    fired: dict[str, NDArray[np.bool_]]
    cosines: tuple[Ints, Floats] | None
    cosine_shares: list[float] | None
    cosine_null: list[float] | None


class Matcher:
    """Matches another SAE with the first; `add` validation batches, `choose`, then `sums` and `collect` on test.

    Args:
        first: Latents of the first SAE.
        other: Latents of the other.
        mean: [d] mean activation that the other reads.
        seed: Seed of the permutation.
    """

    def __init__(self, first: Units, other: Units, mean: Tensor, seed: int) -> None:
        self._first, self._other, self._mean = first, other, mean
        self._order = torch.from_numpy(np.random.default_rng(seed).permutation(len(mean)))
        self._found = [Correlation(first.num_units, other.num_units) for _ in range(2)]
        self._pairs: list[dict[str, tuple[Ints, Ints]]] = []
        self._valid: list[dict[str, Floats]] = []
        self._fired: list[dict[str, NDArray[np.bool_]]] = []
        self._rates: list[Floats] = []
        self._sums: list[dict[str, list[PairSums]]] = [{kind: [] for kind in KINDS} for _ in range(2)]

    def permuted(self, x: Tensor) -> Sparse:
        """Activations [R, m] of the permuted dictionary for hidden states [R, d]."""
        return self._other.activations(self._mean + (x - self._mean)[:, self._order])

    def add(self, first: Sparse, other: Sparse, permuted: Sparse) -> None:
        """Take in the activations of a validation batch."""
        self._found[0].add(first, other)
        self._found[1].add(first, permuted)

    def choose(self) -> None:
        """Choose the matches; the sums over all pairs are given back to memory."""
        for found in self._found:
            r = found.result()
            rates = found.rates()
            first, other = rates[0] > 0, rates[1] > 0
            self._rates.append(rates[1])
            assigned = one_to_one(r.T[other][:, first])
            live, partners = np.flatnonzero(first), np.full(len(other), NO_PARTNER, dtype=np.int64)
            partners[np.flatnonzero(other)] = np.where(assigned == NO_PARTNER, NO_PARTNER, live[assigned])
            of_other, of_first = best_match(r.T), best_match(r)
            every_other, every_first = np.arange(len(other)), np.arange(len(first))
            self._pairs.append(
                {
                    "of_other": (of_other, every_other),
                    "of_first": (every_first, of_first),
                    "one_to_one": (np.maximum(partners, 0), every_other),
                }
            )
            self._valid.append({kind: r[pairs].astype(np.float64) for kind, pairs in self._pairs[-1].items()})
            self._fired.append({"of_other": other, "of_first": first, "one_to_one": other})
            # Without a partner a latent is not matched: r of 0 is below every threshold.
            self._valid[-1]["one_to_one"][partners == NO_PARTNER] = np.nan
        self._found = []

    def sums(self, first: Sparse, other: Sparse, permuted: Sparse, owners: Ints, num_proteins: int) -> MatchSums:
        """What a test batch adds; see `collect`."""
        return [
            {kind: PairSums.of(first, each, pairs, owners, num_proteins) for kind, pairs in chosen.items()}
            for each, chosen in zip((other, permuted), self._pairs, strict=True)
        ]

    def collect(self, sums: MatchSums) -> None:
        """Keep what `sums` returned, in the order of the batches."""
        for kept, part in zip(self._sums, sums, strict=True):
            for kind in KINDS:
                kept[kind].append(part[kind])

    def result(self, thresholds: Sequence[float], how: Resampling) -> Matched:
        """The shares of matched latents, from the test proteins."""
        shares: list[dict[str, list[Interval]]] = []
        classes: list[list[tuple[int, list[Interval]]]] = []
        partners, correlations = {}, {}
        for place, sums in enumerate(self._sums):
            shares.append({})
            for kind in KINDS:
                total = PairSums.total(sums[kind])
                alone = np.isnan(self._valid[place][kind])
                shares[place][kind] = total.shares(
                    self._fired[place][kind],
                    list(thresholds),
                    num_resamples=how.num_resamples,
                    confidence=how.confidence,
                    seed=how.seed,
                    of_ours=kind == "of_first",
                    never=alone,
                )
                if kind == "of_other":
                    rates = self._rates[place]
                    inside = [(rates > low) & (rates <= high) for low, high in pairwise(RATES)]
                    classes.append(
                        [
                            (
                                int(which.sum()),
                                total.shares(
                                    which,
                                    list(thresholds),
                                    num_resamples=how.num_resamples,
                                    confidence=how.confidence,
                                    seed=how.seed,
                                    of_ours=False,
                                ),
                            )
                            for which in inside
                        ]
                    )
                if place == 0:
                    chosen = self._pairs[0][kind][1 if kind == "of_first" else 0]
                    partners[kind] = np.where(alone, NO_PARTNER, chosen)
                    test = np.where(alone, np.nan, total.correlations())
                    correlations[kind] = (self._valid[0][kind], test)
        cosines, cosine_shares, cosine_null = self._cosines(thresholds)
        by_rate = [
            RateClass(low, high, *real, *null)
            for (low, high), real, null in zip(pairwise(RATES), *classes, strict=True)
        ]
        return Matched(
            list(thresholds),
            shares[0],
            shares[1],
            by_rate,
            partners,
            correlations,
            self._fired[0],
            cosines,
            cosine_shares,
            cosine_null,
        )

    @torch.no_grad()
    def _cosines(
        self, thresholds: Sequence[float]
    ) -> tuple[tuple[Ints, Floats] | None, list[float] | None, list[float] | None]:
        ours, theirs = self._first.sae.atoms.numpy(), self._other.sae.atoms.numpy()
        if ours.shape[1] != theirs.shape[1]:
            return None, None, None
        found = []
        for atoms in (theirs, theirs[:, self._order.numpy()]):
            similarity = decoder_cosines(atoms, ours)
            best = best_match(similarity)
            found.append((best, similarity[np.arange(len(best)), best].astype(np.float64)))
        every = np.ones(len(theirs), dtype=bool)
        shares = [[share_above(each, every, threshold) for threshold in thresholds] for _, each in found]
        return found[0], shares[0], shares[1]
