"""The forward of a model over packed sequences, in the pieces that reading and editing need.

Sequences lie one after another without padding. What works per token (projections, norms, feed-forward) runs over all
rows at once; attention runs over sequences of equal length together, so there are no masks and no work on pads, and a
row does not depend on what else is in the batch but through the rounding of the matrix products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plmsae.plms.base import Tokens

# What a block adds to the residual stream is shown to the tap under the hook's name; the block adds what comes back.
Tap = Callable[[str, Tensor], Tensor]


def no_tap(_hook: str, added: Tensor) -> Tensor:
    """A tap that changes nothing."""
    return added


@dataclass(frozen=True)
class Layout:
    """Where sequences lie in a packed batch.

    Attributes:
        runs: (first token, tokens per sequence, number of sequences) of consecutive sequences of equal length.
        rotation: complex64 [N, 1, 1, w], the rotary factors of each token, with w = 0 for a model without them.
    """

    runs: tuple[tuple[int, int, int], ...]
    rotation: Tensor


class Network(ABC):
    """The layers of one model; `packed.PackedLM` composes them and decides where to stop, to read and to edit.

    Attributes:
        num_layers: Number of blocks.
        d_model: Width of the residual stream.
        inverse_frequencies: fp32 [w] of the rotary embedding, empty without one; where it lies, the model runs.
    """

    num_layers: int
    d_model: int
    inverse_frequencies: Tensor

    def layout(self, lengths: Tensor) -> Layout:
        """Prepare a batch from its tokens per sequence, int64 [B]; positions count from 0 with the specials."""
        values, counts = torch.unique_consecutive(lengths, return_counts=True)
        starts = torch.cumsum(values * counts, 0) - values * counts
        runs = tuple(zip(starts.tolist(), values.tolist(), counts.tolist(), strict=True))
        ends = torch.cumsum(lengths, 0)
        positions = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - lengths, lengths)
        angles = positions.to(self.inverse_frequencies.device)[:, None].float() * self.inverse_frequencies
        return Layout(runs, torch.polar(torch.ones_like(angles), angles)[:, None, None, :])

    @abstractmethod
    def embed(self, tokens: Tokens) -> Tensor:
        """What enters the first block, fp32 [N, d_model]."""

    @abstractmethod
    def block(self, index: int, hidden: Tensor, layout: Layout, tap: Tap = no_tap) -> Tensor:
        """Block `index` (0-based) on the residual stream [N, d_model] -> [N, d_model]; `hidden` is not changed.

        Without an edit the result does not depend on the tap.
        """

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last block, [n, d_model] -> [n, d_model]."""

    def head(self, hidden: Tensor) -> Tensor:
        """Scores from normalised rows, [n, d_model] -> [n, V]; not asked for where `objective` is `none`."""
        raise AssertionError(f"a model without a head was asked for the scores of {len(hidden)} rows")
