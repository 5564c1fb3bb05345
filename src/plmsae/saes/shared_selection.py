"""Exact selection of the largest entries of several processes together, without moving the entries.

A positive floating-point number has the order of its bits read as a whole number. So the smallest value that is kept
is found digit by digit from the top: how many entries have each digit, among those with the digits found so far, is
added up over the processes, and says in which one the wanted number is reached. For fp32 that is three sums of 2,048
counts, however many entries there are. The result is that of sorting all entries in one place: among equal values the
first are taken, in the order of the ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.saes.group import Group

_DIGIT_BITS = 11
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


def first_largest_of_all(values: Tensor, count: int, group: Group) -> Tensor:
    """Indices, ascending, of those of [m] that are among the `count` largest of all processes.

    Args:
        values: Positive, fp32 or fp64; m may differ between processes.
        count: Less than the entries of all processes, at least 1.
        group: The processes.
    """
    bits = values.view(_WHOLE[values.dtype]).long()
    smallest, ties_wanted = _smallest_kept(bits, values.element_size() * 8 - 1, count, group)
    chosen = bits > smallest
    tied = (bits == smallest).nonzero().flatten()
    ties = group.gather(torch.tensor([len(tied)], device=values.device))
    left = ties_wanted - int(ties[: group.rank].sum())
    chosen[tied[: max(0, left)]] = True
    return chosen.nonzero().flatten()


def _smallest_kept(bits: Tensor, num_bits: int, count: int, group: Group) -> tuple[int, int]:
    """The `count`-th largest of all processes' whole numbers, and how many that are equal to it are kept."""
    prefix, wanted = 0, count
    while num_bits:
        width = min(_DIGIT_BITS, num_bits)
        num_bits -= width
        digits = (bits >> num_bits) & (2**width - 1)
        counts = group.sum_(torch.bincount(digits, minlength=2**width))
        at_least = counts.flip(0).cumsum(0).flip(0)  # entries with this digit or a larger one
        digit = int((at_least >= wanted).nonzero()[-1])
        wanted -= int(at_least[digit] - counts[digit])
        bits = bits[digits == digit]
        prefix = (prefix << width) | digit
    return prefix, wanted
