"""Which latents of neighbouring layers are the same: `latent_matches` of many pairs, as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.latent_matches import Matched, Matcher, MatchSums
from plmsae.evaluation.member_pass import Member, MemberBatch, run_members
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.units import Units

_BYTES_AT_ONCE = 4 * 2**30
_BYTES_PER_PAIR = 16  # the sums of a pair of latents, of the dictionary and of the permuted one, fp64


def match_neighbours(
    members: Sequence[Member],
    means: Sequence[Tensor],
    data: ConceptData,
    *,
    thresholds: Sequence[float],
    how: Resampling,
    threads: int,
    bytes_at_once: int = _BYTES_AT_ONCE,
) -> list[Matched]:
    """Match every SAE with the one before it.

    Args:
        members: SAEs in the order of their layers.
        means: [d] mean activation that each reads, about which the permuted dictionary turns.
        data: Validation proteins to choose matches on, test proteins to confirm them on.
        thresholds: Similarities that the shares of matched latents are given for.
        how: Resamples; its seed is that of the permutation too.
        threads: Batches that are run at once; the numbers do not depend on it.
        bytes_at_once: Memory for sums over pairs of latents; one pair of SAEs is taken in any case.

    Returns:
        For every SAE but the first.
    """
    found = []
    for start, stop in _groups(members, bytes_at_once):
        found += _match_group(members[start:stop], means[start:stop], data, list(thresholds), how, threads)
    return found


def _groups(members: Sequence[Member], bytes_at_once: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 of runs of neighbours whose pairs fit the memory; the last of a run begins the next one."""
    sizes = [member.sae.config.dictionary_size for member in members]
    start, used = 0, 0
    for place, (lower, upper) in enumerate(pairwise(sizes)):
        needed = _BYTES_PER_PAIR * lower * upper
        if used and used + needed > bytes_at_once:
            yield start, place + 1
            start, used = place, 0
        used += needed
    if used:
        yield start, len(members)


def _match_group(
    members: Sequence[Member],
    means: Sequence[Tensor],
    data: ConceptData,
    thresholds: list[float],
    how: Resampling,
    threads: int,
) -> list[Matched]:
    units = [Units(member.name, member.sae) for member in members]
    matchers = [
        Matcher(lower, upper, mean, how.seed) for (lower, upper), mean in zip(pairwise(units), means[1:], strict=True)
    ]
    owners = data.test.owners
    num_proteins = int(owners.max()) + 1

    def look(batch: MemberBatch) -> tuple[list[Sparse], list[Sparse]]:
        found = [unit.activations(x) for unit, x in zip(units, batch.x, strict=True)]
        return found, [each.permuted(x) for each, x in zip(matchers, batch.x[1:], strict=True)]

    def on_test(batch: MemberBatch) -> list[MatchSums]:
        found, turned = look(batch)
        of = np.repeat(owners[batch.first : batch.last], np.diff(batch.labels.row_starts))
        return [
            each.sums(lower, upper, permuted, of, num_proteins)
            for each, (lower, upper), permuted in zip(matchers, pairwise(found), turned, strict=True)
        ]

    for found, turned in run_members(members, data.valid, look, title="match layers", threads=threads):
        for each, (lower, upper), permuted in zip(matchers, pairwise(found), turned, strict=True):
            each.add(lower, upper, permuted)
    for each in matchers:
        each.choose()
    for sums in run_members(members, data.test, on_test, title="match layers", threads=threads):
        for each, piece in zip(matchers, sums, strict=True):
            each.collect(piece)
    return [each.result(thresholds, how) for each in matchers]
