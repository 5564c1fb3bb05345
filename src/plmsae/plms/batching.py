"""Batches of sequences under a token budget."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# No family puts more special tokens around a sequence; with fewer a batch stays below its budget.
SPECIALS_PER_SEQUENCE = 2


def length_sorted_batches(lengths: npt.ArrayLike, max_tokens: int) -> list[npt.NDArray[np.int64]]:
    """Group sequences by length, longest first, so that a batch holds at most `max_tokens` tokens.

    Sequences of equal length end up side by side, where one attention call serves them all. A sequence longer
    than the budget is a batch of its own. Ties keep their order, so the result is a function of the arguments.

    Args:
        lengths: Residues of each sequence, [B].
        max_tokens: Tokens of a batch at most, specials included.

    Returns:
        Arrays of indices into `lengths`; together they hold each index once.
    """
    tokens = np.asarray(lengths, dtype=np.int64) + SPECIALS_PER_SEQUENCE
    order = np.argsort(-tokens, kind="stable")
    ends = np.cumsum(tokens[order])
    batches, start = [], 0
    while start < len(order):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + max_tokens, side="right")), start + 1)
        batches.append(order[start:stop])
        start = stop
    return batches
