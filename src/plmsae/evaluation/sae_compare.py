"""Any number of SAEs, of any models, layers, architectures and sizes, side by side on the same proteins.

Validation proteins choose: for every SAE the latent and the threshold of each concept, and for every pair of the first
SAE and another one which latents are the same. Test proteins report: FVU about the mean of the same residues, L0, the
share of latents that never fire, the mean concept F1, and the correlation of the matched latents. All SAEs are
resampled with the same proteins, so that their differences are paired. The first SAE is the one that the others are
compared with.

Every SAE is given the activations of its own place: FVU compares how well each reconstructs what it reads, which
is easier at some layers than at others. An SAE whose largest activations are not known (an imported one) has them
measured on the validation proteins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from plmsae.evaluation import concept_data
from plmsae.evaluation.bootstrap import Floats, Interval, intervals, percentile_bounds, resampled_sums
from plmsae.evaluation.concept_compare import Resampling, Tested, difference, mean_interval, score_rows
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.counts import ConceptCounter, RowCounts
from plmsae.evaluation.inputs import Proteins
from plmsae.evaluation.latent_matches import Matched, Matcher, MatchSums
from plmsae.evaluation.member_pass import Member, MemberBatch, run_members
from plmsae.evaluation.passes import Predictors, count_predictors
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.scores import f1_of, select
from plmsae.evaluation.units import Units

_MEANS_EVERY = 8  # one of so many batches is enough for the mean that the permuted dictionary turns about
QUANTITIES = ("fvu", "l0", "dead", "mean_f1")


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        members: The SAEs, the first one first.
        data: Proteins and concepts.
        values: Per SAE quantity -> value with interval; `mean_f1` is missing where no concept is frequent enough.
        differences: Per SAE but the first, quantity -> its value minus the first SAE's.
        tested: Per SAE concept scores; empty without concepts.
        matched: Per SAE but the first, how its latents match the first SAE's; empty if not asked for.
        measured: Names of the SAEs whose largest activations were measured here.
    """

    members: Sequence[Member]
    data: ConceptData
    values: list[dict[str, Interval]]
    differences: list[dict[str, Interval]]
    tested: list[Tested]
    matched: list[Matched]
    measured: list[str]


@dataclass(frozen=True)
class _Sums:
    """What a batch of test proteins adds.

    Attributes:
        rows: [p] its proteins.
        wide: [p, 4 + d] squared error, squared norm, active latents, residues, and the sum of the activations.
        fired: [P, n] COO, a stored entry where a latent fires on a protein.
    """

    rows: NDArray[np.int64]
    wide: Floats
    fired: Sparse


def compare(
    proteins: Proteins,
    members: Sequence[Member],
    *,
    max_proteins: int | None,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    match: bool,
    match_thresholds: Sequence[float],
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Comparison:
    """Compare SAEs.

    Args:
        proteins: Proteins with splits and annotations.
        members: At least one SAE.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_instances: Annotations that a concept needs in each split.
        min_proteins: Proteins with one that it needs in each split.
        thresholds: Ascending thresholds on normalised activations.
        match: Whether latents are matched; it takes memory of 16 n m bytes for each pair of sizes n and m.
        match_thresholds: Similarities that the shares of matched latents are given for.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, permutation and bootstrap.
    """
    data = concept_data.load(
        proteins,
        max_proteins=max_proteins,
        min_instances=min_instances,
        min_proteins=min_proteins,
        max_tokens=max_tokens,
        seed=seed,
    )
    how = Resampling(num_resamples, confidence, seed)
    means, measured = _prepare(members, data, threads)
    units = [Units(member.name, member.sae) for member in members]
    matchers = [Matcher(units[0], units[place], means[place], seed) for place in range(1, len(members)) if match]

    def on_valid(batch: MemberBatch) -> tuple[MemberBatch, list[Sparse], list[Sparse]]:
        found = [unit.activations(x) for unit, x in zip(units, batch.x, strict=True)]
        return batch, found, [each.permuted(batch.x[1 + place]) for place, each in enumerate(matchers)]

    counters = [ConceptCounter(len(data.concepts), unit.num_units, thresholds) for unit in units if data.concepts]
    for batch, found, permuted in run_members(members, data.valid, on_valid, title="compare", threads=threads):
        for counter, activations in zip(counters, found, strict=False):
            counter.add(activations, batch.labels)
        for each, activations, turned in zip(matchers, found[1:], permuted, strict=False):
            each.add(found[0], activations, turned)
    labels = data.valid.labels
    wanted = labels.num_residues_of(), labels.num_instances_of()
    predictors = [Predictors.of(select(f1_of(counter.result(), *wanted, data.residue_level))) for counter in counters]
    for each in matchers:
        each.choose()

    levels = np.asarray(thresholds, dtype=np.float32)
    owners = data.test.owners
    num_proteins = int(owners.max()) + 1

    def on_test(batch: MemberBatch) -> tuple[list[RowCounts], list[_Sums], list[MatchSums]]:
        codes = [unit.encode(x) for unit, x in zip(units, batch.x, strict=True)]
        found = [unit.normalised(*code) for unit, code in zip(units, codes, strict=True)]
        of = np.repeat(owners[batch.first : batch.last], np.diff(batch.labels.row_starts))
        rows = [
            count_predictors(activations, given, levels, batch.labels)
            for activations, given in zip(found, predictors, strict=False)
        ]
        sums = [_sums(member, x, code, of) for member, x, code in zip(members, batch.x, codes, strict=True)]
        pairs = [
            each.sums(found[0], activations, each.permuted(x), of, num_proteins)
            for each, activations, x in zip(matchers, found[1:], batch.x[1:], strict=False)
        ]
        return rows, sums, pairs

    rows: list[list[RowCounts]] = [[] for _ in predictors]
    sums: list[list[_Sums]] = [[] for _ in members]
    for counted, summed, pairs in run_members(members, data.test, on_test, title="compare", threads=threads):
        for pieces, piece in zip(rows, counted, strict=True):
            pieces.append(piece)
        for whole, part in zip(sums, summed, strict=True):
            whole.append(part)
        for each, piece_of_pairs in zip(matchers, pairs, strict=True):
            each.collect(piece_of_pairs)
    tested = [
        score_rows(RowCounts.concatenate(each), data.test.labels, owners, data.residue_level, how) for each in rows
    ]
    values, differences = _quantities(members, sums, tested, num_proteins, how)
    matched = [each.result(match_thresholds, how) for each in matchers]
    return Comparison(members, data, values, differences, tested, matched, measured)


def _prepare(members: Sequence[Member], data: ConceptData, threads: int) -> tuple[list[Tensor], list[str]]:
    """Mean activation of every member's place, and the largest activations of those that lack them."""
    missing = [place for place, member in enumerate(members) if not bool((member.sae.latent_max > 0).any())]

    def look(batch: MemberBatch) -> tuple[int, list[Tensor], list[Tensor]]:
        highest = []
        for place in missing:
            sae = members[place].sae
            with torch.no_grad():
                indices, values = sae.encode_sparse(batch.x[place])
            found = torch.zeros_like(sae.latent_max)
            highest.append(found.scatter_reduce(0, indices.reshape(-1), values.reshape(-1), "amax"))
        return len(batch.x[0]), [x.double().sum(0) for x in batch.x], highest

    count, totals, largest = 0, [torch.zeros(1)] * len(members), [torch.zeros(1)] * len(missing)
    every = 1 if missing else _MEANS_EVERY
    seen = run_members(members, data.valid, look, title="compare: means", threads=threads, every=every)
    for place, (number, sums, highest) in enumerate(seen):
        if place * every % _MEANS_EVERY == 0:  # the same batches, whoever else is compared
            count += number
            totals = [total + part for total, part in zip(totals, sums, strict=True)]
        largest = [torch.maximum(whole, part) for whole, part in zip(largest, highest, strict=True)]
    for place, found in zip(missing, largest, strict=True):
        members[place].sae.latent_max.copy_(found)
    return [(total / count).float() for total in totals], [members[place].name for place in missing]


@torch.no_grad()
def _sums(member: Member, x: Tensor, code: tuple[Tensor, Tensor], owners: NDArray[np.int64]) -> _Sums:
    indices, values = code
    wide = x.double()
    error = (wide - member.sae.decode_sparse(indices, values, x).double()).square().sum(1)
    active = values > 0
    columns = torch.stack([error, wide.square().sum(1), active.sum(1).double(), torch.ones(len(x)).double()], dim=1)
    different, local = np.unique(owners, return_inverse=True)
    gathered = torch.zeros(len(different), columns.shape[1] + x.shape[1], dtype=torch.float64)
    gathered.index_add_(0, torch.from_numpy(local), torch.cat([columns, wide], dim=1))
    rows = np.repeat(owners, active.sum(1).numpy())
    fired = sparse.csr_matrix(
        (np.ones(len(rows), dtype=np.int64), (rows, indices[active].numpy())),
        shape=(int(owners.max()) + 1, member.sae.config.dictionary_size),
    )
    return _Sums(different, gathered.numpy(), fired.tocoo())


def _quantities(
    members: Sequence[Member],
    sums: Sequence[Sequence[_Sums]],
    tested: Sequence[Tested],
    num_proteins: int,
    how: Resampling,
) -> tuple[list[dict[str, Interval]], list[dict[str, Interval]]]:
    """Values of every SAE, and paired differences from the first."""
    wide, starts = [], [0]
    for each in sums:
        total = np.zeros((num_proteins, each[0].wide.shape[1]))
        for piece in each:
            total[piece.rows] += piece.wide
        wide.append(total)
        starts.append(starts[-1] + total.shape[1])

    def statistics(values: Floats) -> dict[str, Floats]:
        found = {}
        for place in range(len(members)):
            part = values[:, starts[place] : starts[place + 1]]
            variation = part[:, 1] - np.square(part[:, 4:]).sum(axis=1) / part[:, 3]
            found[f"fvu {place}"] = part[:, 0] / np.where(variation > 0, variation, np.nan)
            found[f"l0 {place}"] = part[:, 2] / part[:, 3]
        for name in ("fvu", "l0"):
            for place in range(1, len(members)):
                found[f"{name} {place} - 0"] = found[f"{name} {place}"] - found[f"{name} 0"]
        return found

    found = intervals(
        np.concatenate(wide, axis=1),
        statistics,
        num_resamples=how.num_resamples,
        confidence=how.confidence,
        seed=how.seed,
    )
    dead = [_dead(member, each, num_proteins, how) for member, each in zip(members, sums, strict=True)]
    values: list[dict[str, Interval]] = []
    differences: list[dict[str, Interval]] = []
    for place in range(len(members)):
        value, samples = dead[place]
        dead_share = _moved(value, samples, how.confidence)
        dead_share = Interval(value, max(dead_share.low, 0.0), min(dead_share.high, 1.0))
        of = {"fvu": found[f"fvu {place}"], "l0": found[f"l0 {place}"], "dead": dead_share}
        if tested:
            of["mean_f1"] = mean_interval(tested[place], how.confidence)
        values.append(of)
        if place == 0:
            continue
        gap = {"fvu": found[f"fvu {place} - 0"], "l0": found[f"l0 {place} - 0"]}
        gap["dead"] = _moved(value - dead[0][0], samples - dead[0][1], how.confidence)
        if tested:
            gap["mean_f1"] = difference(tested[place], tested[0], how.confidence).mean
        differences.append(gap)
    return values, differences


def _dead(member: Member, sums: Sequence[_Sums], num_proteins: int, how: Resampling) -> tuple[float, Floats]:
    """Share of latents that never fire, and the same in every resample."""
    size = member.sae.config.dictionary_size
    pieces = [each.fired for each in sums]
    rows, columns = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("row", "col"))
    fired = sparse.csc_matrix((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(num_proteins, size))
    silent = np.zeros(how.num_resamples)
    for start in range(0, size, 1024):
        part = fired[:, start : start + 1024].toarray()
        silent += (resampled_sums(part, how.num_resamples, how.seed) == 0).sum(axis=1)
    return float((np.diff(fired.indptr) == 0).mean()), silent / size


def _moved(value: float, samples: Floats, confidence: float) -> Interval:
    """A resample holds fewer different proteins, so more is silent in it: its spread is taken, about the estimate.

    Where few resamples differ at all, their mean is outside the percentiles; the interval holds the estimate.
    """
    low, high = percentile_bounds(samples, confidence)
    shift = value - float(samples.mean())
    return Interval(value, min(float(low) + shift, value), max(float(high) + shift, value))
