"""Classes of activation patterns by the rules of InterProt (Adams et al. 2025; code `analyze_viz_files.py`).

A unit is judged by at most 12 sequences: those on which its maximum is above 0.75 of its maximum over all sequences,
strongest first. A contig is a stretch of consecutive residues on which the unit is above 0. In this order:

    dead          never above 0
    rare          fewer than 5 such sequences ("not enough data" there)
    periodic      the two most frequent distances between starts of neighbouring contigs make up more than half of all
                  distances, the median number of contigs per sequence is above 10, and the top contig is shorter than
                  10 (below)
    point         the median length of contigs that reach above 0.75 is 1
    short motif   mean share of active residues below 0.8 and top contig shorter than 20
    medium motif  ... shorter than 50
    long motif    ... shorter than 300
    whole         mean share of active residues above 0.8
    other         none of these

The top contig is the one with the highest activation in each sequence, its length the median over sequences; 0.75 is
a share of the unit's maximum. Of contigs with equal activation the first counts (there the order is left to a sort).
Two things of that code are the variant `interprot`: activations are rounded to one decimal in the SAE's own scale
before anything else is computed, so that its classes depend on that scale; by default nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.top_sequences import Ints, Runs

CLASSES = (
    "dead",
    "rare",
    "periodic",
    "point",
    "short motif",
    "medium motif",
    "long motif",
    "whole",
    "other",
)
NUM_SEQUENCES = 12
HIGH = 0.75
FEWEST_SEQUENCES = 5
COLUMNS = (
    "num_sequences",
    "mean_share_active",
    "median_contigs",
    "median_top_contig",
    "median_high_contig",
    "period",
    "share_period",
    "share_two_periods",
)


def rounded(runs: Runs, scales: Floats) -> Runs:
    """The variant `interprot`: activations rounded to one decimal in the SAE's own scale.

    Args:
        runs: Normalised activations.
        scales: [n] what each unit's were divided by.
    """
    scale = scales[np.repeat(runs.units, np.diff(runs.pointers))]
    values = (np.round(runs.values * scale, 1) / scale).astype(np.float32)
    highest = (np.round(runs.highest * scales[runs.units], 1) / scales[runs.units]).astype(np.float32)
    return Runs(runs.units, runs.sequences, highest, runs.pointers, runs.positions, values)


def pattern_table(runs: Runs, highest: Floats, lengths: Ints, scales: Floats | None = None) -> pd.DataFrame:
    """Statistics and class of every unit.

    Args:
        runs: The strongest sequences of each unit, at most 12 (`TopSequences.result`).
        highest: [n] largest activation of each unit over all sequences.
        lengths: [num_sequences] residues of each sequence.
        scales: [n] what each unit's activations were divided by, for the variant `interprot`; None for no rounding.

    Returns:
        One row per unit: `latent`, `pattern`, and `COLUMNS`, NaN where a statistic has nothing to be taken over.
    """
    num_units = len(highest)
    # Which sequences count is decided before anything is rounded, as there.
    high = runs.take(np.flatnonzero(runs.highest > HIGH * highest[runs.units]))
    if scales is not None:
        high = rounded(high, scales)
    tops = np.zeros(num_units)
    np.maximum.at(tops, high.units, high.highest)
    contigs = _contigs(high)
    table = pd.DataFrame(_statistics(high, contigs, tops, lengths, num_units))
    table.insert(0, "latent", np.arange(num_units))
    table.insert(1, "pattern", classify(highest > 0, table))
    return table


def classify(alive: NDArray[np.bool_], table: Mapping[str, NDArray[Any]] | pd.DataFrame) -> list[str]:
    """The class of each unit by the rules above, from `COLUMNS`."""
    columns = {name: np.asarray(table[name]) for name in COLUMNS}
    motif = columns["mean_share_active"] < 0.8
    top = columns["median_top_contig"]
    rules = [
        ~alive,
        columns["num_sequences"] < FEWEST_SEQUENCES,
        (columns["share_two_periods"] > 0.5) & (columns["median_contigs"] > 10) & (top < 10),
        columns["median_high_contig"] == 1,
        motif & (top < 20),
        motif & (top < 50),
        motif & (top < 300),
        columns["mean_share_active"] > 0.8,
    ]
    return list(np.select(rules, CLASSES[:-1], CLASSES[-1]))


def _contigs(runs: Runs) -> dict[str, NDArray[Any]]:
    """Run, start, length and largest activation of every contig, in the order of the runs."""
    on = runs.values > 0  # rounding may have silenced some
    owner = np.repeat(np.arange(len(runs.units)), np.diff(runs.pointers))[on]
    positions, values = runs.positions[on].astype(np.int64), runs.values[on]
    first = np.ones(len(owner), dtype=bool)
    first[1:] = (owner[1:] != owner[:-1]) | (positions[1:] != positions[:-1] + 1)
    places = np.flatnonzero(first)
    return {
        "run": owner[places],
        "start": positions[places],
        "length": np.diff(np.append(places, len(owner))),
        "highest": np.maximum.reduceat(values, places) if len(places) else values,
    }


def _statistics(
    runs: Runs, contigs: Mapping[str, NDArray[Any]], tops: Floats, lengths: Ints, num_units: int
) -> dict[str, Floats]:
    run, num_runs = contigs["run"].astype(np.int64), len(runs.units)
    counts = np.bincount(run, minlength=num_runs)
    active = np.bincount(run, weights=contigs["length"], minlength=num_runs)
    share = active / lengths[runs.sequences]
    num_sequences = np.bincount(runs.units, minlength=num_units)
    high = contigs["highest"] > HIGH * tops[runs.units[run]]
    # The first of the contigs with the highest activation of each sequence.
    order = np.lexsort((contigs["start"], -contigs["highest"], run))
    top = order[np.flatnonzero(np.diff(run[order], prepend=-1))]
    top = top[high[top]]
    same = run[1:] == run[:-1]
    distances = np.diff(contigs["start"])[same].astype(np.int64)
    period, largest, two, total = _periods(runs.units[run[1:][same]], distances, num_units)
    return {
        "num_sequences": num_sequences.astype(np.float64),
        "mean_share_active": _mean(share, runs.units, num_units),
        "median_contigs": _median(counts, runs.units, num_units),
        "median_top_contig": _median(contigs["length"][top], runs.units[run[top]], num_units),
        "median_high_contig": _median(contigs["length"][high], runs.units[run[high]], num_units),
        "period": np.where(total > 0, period, np.nan),
        "share_period": np.where(total > 0, largest / np.maximum(total, 1), 0.0),
        "share_two_periods": np.where(total > 0, two / np.maximum(total, 1), 0.0),
    }


def _mean(values: NDArray[Any], owners: Ints, num_owners: int) -> Floats:
    number = np.bincount(owners, minlength=num_owners)
    total = np.bincount(owners, weights=values, minlength=num_owners)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _median(values: NDArray[Any], owners: Ints, num_owners: int) -> Floats:
    """Median of the values of each owner, NaN for one without any."""
    order = np.lexsort((values, owners))
    values, owners = np.asarray(values, dtype=np.float64)[order], owners[order]
    number = np.bincount(owners, minlength=num_owners)
    starts = np.concatenate([[0], np.cumsum(number)[:-1]])
    found = np.full(num_owners, np.nan)
    some = number > 0
    low, high = (starts + (number - 1) // 2)[some], (starts + number // 2)[some]
    found[some] = (values[low] + values[high]) / 2
    return found


def _periods(units: Ints, distances: Ints, num_units: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Per unit: the most frequent distance (the shortest of equals), its count, that of the two together, and all."""
    width = int(distances.max(initial=0)) + 1
    keys, counts = np.unique(units * width + distances, return_counts=True)
    owners, values = keys // width, keys % width
    order = np.lexsort((values, -counts, owners))
    owners, values, counts = owners[order], values[order], counts[order]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    period, largest, two = np.zeros(num_units), np.zeros(num_units), np.zeros(num_units)
    period[owners[rank == 0]], largest[owners[rank == 0]] = values[rank == 0], counts[rank == 0]
    np.add.at(two, owners[rank < 2], counts[rank < 2])
    total = np.bincount(owners, weights=counts, minlength=num_units).astype(np.float64)
    return period, largest, two, total
