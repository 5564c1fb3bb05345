"""How a concept is spread over latents: splitting and absorption, on residue concepts.

After SAEBench (Karvonen et al. 2025) and "A is for Absorption" (Chanin et al. 2024), with Swiss-Prot concepts of
residues in the place of first letters and with unions of latents in the place of linear probes.

Splitting. The main latent of a concept is the one with the best F1 on validation. Latents are added one by one,
each the one that raises the F1 of the union on validation most (a residue is predicted if any of them is above its
threshold; F1 as in `scores`), until none raises it or there are `max_latents`. The latents needed are the fewest that
reach `share` of the best union's F1 on validation; all numbers are then reported on test. It is a k-sparse probing
curve whose probe is a disjunction.

Absorption. A residue of the concept is absorbed if the main latent is silent on it (not above the lowest threshold) and
an absorber fires. An absorber is a latent that on validation is specific to a sub-class of the concept: its
precision is at least `min_precision`, it fires on at least `min_residues` and at most `max_share` of the concept's
residues, and the main latent is silent more often where it fires than on the concept as a whole. The rate is the
share of the concept's test residues that are absorbed. Absorbers fire on some silent residues by chance: `expected` is
the share of silent residues times the share on which an absorber fires, and `excess` what the rate is above it.

What it does not say. Candidates are the latents that do well alone, so the curve is a lower bound of what
`max_latents` latents can do. A union cannot subtract, as a linear probe can. Absorption is told from the annotation: a
main latent that is silent where the annotation is wrong is counted as silent. A sub-class with no annotation of its own
is known only by its latent. And that a latent fires does not say that it is used (Chanin et al. ablate; nothing is
ablated here).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.concept_patterns import BitPredictors, Ints, Patterns
from plmsae.evaluation.counts import Counts
from plmsae.evaluation.scores import NO_LATENT, score, select

UNION_BITS = 24
SILENT_BIT = UNION_BITS
ABSORBER_BITS = 24
NUM_BITS = UNION_BITS + 1 + ABSORBER_BITS
# Half of the candidates of a union are chosen by F1, half by recall among the precise ones, which F1 passes over.
_PRECISE = 0.5


@dataclass(frozen=True)
class SpreadRules:
    """What decides; see the module docstring.

    Attributes:
        max_latents: The most latents in a union.
        share: Share of the best union's F1 that is enough.
        min_precision: Precision of an absorber.
        max_share: The largest share of the concept's residues that a sub-class may be.
        min_residues: Labelled validation residues that an absorber fires on.
    """

    max_latents: int
    share: float
    min_precision: float
    max_share: float
    min_residues: int


def candidates(
    counts: Counts,
    f1: Floats,
    num_residues: Ints,
    num_instances: Ints,
    residue_level: NDArray[np.bool_],
    rules: SpreadRules,
) -> BitPredictors:
    """Predictors of every concept, from validation counts: union candidates, the main latent's silence, absorbers.

    Args:
        counts: Counts of all latents.
        f1: [C, T, n] their F1.
        num_residues: [C] labelled residues.
        num_instances: [C] instances.
        residue_level: [C] true where recall counts residues.
        rules: Rules.

    Returns:
        Bits 0 to 23 are union candidates, bit 0 the main latent; bit 24 is the main latent at the lowest threshold; the
        others are possible absorbers by falling number of labelled residues. A latent has one threshold in each role.
    """
    num_concepts, _, _ = f1.shape
    units = np.full((num_concepts, NUM_BITS), NO_LATENT, dtype=np.int64)
    thresholds = np.zeros((num_concepts, NUM_BITS), dtype=np.int64)
    main = select(f1)
    for concept in range(num_concepts):
        if main.latents[concept] == NO_LATENT:
            continue
        true, active = counts.true_positives[concept].astype(np.float64), counts.active.astype(np.float64)
        precision = np.where(active > 0, true / np.maximum(active, 1), 0.0)
        found = true if residue_level[concept] else counts.hits[concept].astype(np.float64)
        wanted = num_residues[concept] if residue_level[concept] else num_instances[concept]
        recall = np.where(precision >= _PRECISE, found / max(int(wanted), 1), 0.0)
        chosen = [(int(main.latents[concept]), int(main.thresholds[concept]))]
        for values, most in ((np.asarray(f1[concept], dtype=np.float64), UNION_BITS // 2), (recall, UNION_BITS)):
            chosen += _best(values, {unit for unit, _ in chosen}, most - len(chosen))
        _put(units, thresholds, concept, 0, chosen)
        _put(units, thresholds, concept, SILENT_BIT, [(chosen[0][0], 0)])
        fits = (precision >= rules.min_precision) & (true >= rules.min_residues)
        fits &= true <= rules.max_share * num_residues[concept]
        absorbers = _best(np.where(fits, true, 0.0), {chosen[0][0]}, ABSORBER_BITS)
        _put(units, thresholds, concept, SILENT_BIT + 1, absorbers)
    return BitPredictors(units, thresholds)


def _best(values: Floats, without: set[int], most: int) -> list[tuple[int, int]]:
    """Up to so many latents with the largest value above 0 at their best threshold [T, n], but some."""
    thresholds = np.argmax(values, axis=0)
    largest = values[thresholds, np.arange(values.shape[1])]
    largest[list(without)] = 0.0
    order = np.argsort(-largest, kind="stable")[: max(most, 0)]
    return [(int(unit), int(thresholds[unit])) for unit in order if largest[unit] > 0]


def _put(units: Ints, thresholds: Ints, concept: int, bit: int, chosen: list[tuple[int, int]]) -> None:
    for place, (unit, threshold) in enumerate(chosen, start=bit):
        units[concept, place], thresholds[concept, place] = unit, threshold


@dataclass(frozen=True)
class Union:
    """The greedy union of one concept.

    Attributes:
        bits: Bits in the order in which they were added, the first the main latent.
        f1: F1 on validation after each.
        needed: Number of them that reach the share of the best F1.
    """

    bits: list[int]
    f1: list[float]
    needed: int

    def sets(self, number: int) -> Ints:
        """[number] bits of the union of the first 1, 2, ... latents; the last one is repeated."""
        steps = np.bitwise_or.accumulate([np.int64(1) << bit for bit in self.bits] or [np.int64(0)])
        return np.asarray(steps[np.minimum(np.arange(number), len(steps) - 1)], dtype=np.int64)


def greedy_union(
    patterns: Patterns, units: Ints, num_residues: int, num_instances: int, residue_level: bool, rules: SpreadRules
) -> Union:
    """Add latents while the F1 of the union grows.

    Args:
        patterns: Patterns of the concept on validation.
        units: [bits] latents of its predictors.
        num_residues: Labelled residues.
        num_instances: Instances.
        residue_level: Whether recall counts residues.
        rules: Rules.
    """
    if units[0] == NO_LATENT:
        return Union([], [], 0)
    free = np.flatnonzero(units[:UNION_BITS] != NO_LATENT)
    bits: list[int] = []
    values: list[float] = []
    taken = np.int64(0)
    for _ in range(rules.max_latents):
        sets = taken | np.left_shift(np.int64(1), free)
        true, hits, active = patterns.union(sets)
        f1 = score(
            true, hits, active, np.asarray(num_residues), np.asarray(num_instances), np.asarray(residue_level)
        ).f1
        # The main latent comes first: the curve begins where the concept evaluation ends.
        best = 0 if not bits else int(np.argmax(f1))
        if bits and f1[best] <= values[-1]:
            break
        bits.append(int(free[best]))
        values.append(float(f1[best]))
        taken = sets[best]
        free = np.delete(free, best)
        if not len(free):
            break
    needed = int(np.flatnonzero(np.array(values) >= rules.share * values[-1])[0]) + 1
    return Union(bits, values, needed)


@dataclass(frozen=True)
class Absorber:
    """A latent that stands in for the main latent on a sub-class.

    Attributes:
        bit: Its bit.
        precision: On validation.
        share: Share of the concept's validation residues that it fires on.
        silent: Share of those on which the main latent is silent.
    """

    bit: int
    precision: float
    share: float
    silent: float


def absorbers(patterns: Patterns, units: Ints, num_residues: int) -> list[Absorber]:
    """The possible absorbers of a concept where the main latent is silent more often than on the concept as a whole."""
    main = (patterns.masks >> SILENT_BIT) & 1 == 1
    silent = 1.0 - patterns.labelled[main].sum() / max(num_residues, 1)
    found = []
    for bit in range(SILENT_BIT + 1, NUM_BITS):
        if units[bit] == NO_LATENT:
            continue
        on = (patterns.masks >> bit) & 1 == 1
        number = int(patterns.labelled[on].sum())
        here = float(patterns.labelled[on & ~main].sum()) / max(number, 1)
        if here > silent:
            precision = number / max(int(patterns.residues[on].sum()), 1)
            found.append(Absorber(bit, precision, number / max(num_residues, 1), here))
    return found


def absorption_counts(masks: Ints, labelled: NDArray[np.bool_], absorber_sets: Ints) -> Ints:
    """What each residue adds to the counts of absorption, [4, R, C] of 0 and 1.

    Args:
        masks: [R, C].
        labelled: [R, C] residues of each concept.
        absorber_sets: [C] bits of its absorbers.

    Returns:
        Residues of the concept; of them silent ones, ones with an absorber, and absorbed ones.
    """
    silent = labelled & ((masks >> SILENT_BIT) & 1 == 0)
    fired = labelled & ((masks & absorber_sets) != 0)
    return np.stack([labelled, silent, fired, silent & fired]).astype(np.int64)


def absorption(sums: Floats) -> dict[str, Floats]:
    """Silent, rate, expected and excess [..., C] from sums [..., 4, C] (`absorption_counts`); NaN without residues."""
    residues, silent, fired, absorbed = np.moveaxis(np.asarray(sums, dtype=np.float64), -2, 0)
    some = residues > 0
    number = np.where(some, residues, 1.0)
    rate, expected = absorbed / number, silent * fired / number**2
    found = {"silent": silent / number, "rate": rate, "expected": expected, "excess": rate - expected}
    return {name: np.where(some, value, np.nan) for name, value in found.items()}
