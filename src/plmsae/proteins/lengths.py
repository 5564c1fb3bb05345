"""Sequences longer than a protein language model takes: which stretches of a sequence become rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from plmsae.proteins.feature_types import PAIR_TYPES
from plmsae.proteins.records import Feature

LongSequences = Literal["drop", "crop", "window"]


def stretches(
    num_residues: int, *, policy: LongSequences, max_residues: int, overlap: int = 0
) -> list[tuple[int, int]]:
    """The 0-based half-open stretches of a sequence that are kept.

    `drop` keeps nothing of a sequence longer than `max_residues`; `crop` its first `max_residues`; `window` covers all
    of it with the least number of windows, of lengths that differ by at most one, each sharing `overlap` residues
    with the next. No policy touches a sequence that fits.

    Args:
        num_residues: Length of the sequence.
        policy: What to do if it is longer than `max_residues`.
        max_residues: The longest row.
        overlap: Residues that neighbouring windows share, less than `max_residues`.
    """
    if num_residues <= max_residues:
        return [(0, num_residues)]
    if policy == "drop":
        return []
    if policy == "crop":
        return [(0, max_residues)]
    num_windows = -(-(num_residues - overlap) // (max_residues - overlap))
    # Windows start evenly: the last one starts where its length is that of the others, rounded up.
    step = num_residues - overlap
    starts = [step * index // num_windows for index in range(num_windows + 1)]
    return [(starts[index], starts[index + 1] + overlap) for index in range(num_windows)]


def clip(features: Sequence[Feature], start: int, end: int) -> list[Feature]:
    """The features of a stretch, in its coordinates.

    A feature that reaches over the edge is cut there. One of `PAIR_TYPES` names two residues, so it is kept only if
    both are inside.
    """
    kept = []
    for feature in features:
        first, last = max(feature.start, start), min(feature.end, end)
        whole = (first, last) == (feature.start, feature.end)
        if first < last and (whole or feature.type not in PAIR_TYPES):
            kept.append(feature._replace(start=first - start, end=last - start))
    return kept
