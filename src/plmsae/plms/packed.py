"""ESM-2's forward over packed sequences: no padding, fused projections, attention per sequence, early exit.

The arithmetic is that of transformers' `EsmForMaskedLM` in fp32; results agree to a few units of the last place
(tests/plms/test_packed.py). What differs is what is not done: no work on pads, no attention masks, no layers after
the wanted one, no rotary copies, and each residual sum and GELU inside the product before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from plmsae.plms.alphabet import MASK
from plmsae.plms.base import Tokens
from plmsae.plms.linear import linear, linear_add, linear_gelu
from plmsae.plms.weights import Affine, Block, EsmWeights

# Share of tokens that ESM replaced by <mask> in training (15 % selected, 80 % of those masked). The embedding is
# scaled as if as many were masked now (EsmEmbeddings of transformers; `token_dropout` of fair-esm).
MASKED_IN_TRAINING = 0.15 * 0.8
FFN_ROWS = 1024  # rows per feed-forward call: the widened activations stay in the cache


@dataclass(frozen=True)
class Layout:
    """Where sequences lie in a packed batch.

    Attributes:
        runs: (first token, tokens per sequence, number of sequences) of consecutive sequences of equal length.
        rotation: complex64 [N, 1, 1, head_dim / 2], the rotary factor of every token.
    """

    runs: tuple[tuple[int, int, int], ...]
    rotation: Tensor


class PackedEncoder:
    """The layers of one model, one method each; the caller composes them and decides where to stop or to edit."""

    def __init__(self, weights: EsmWeights) -> None:
        self.weights = weights
        self.config = weights.config

    def layout(self, lengths: Tensor) -> Layout:
        """Prepare a batch from its tokens per sequence, int64 [B]."""
        values, counts = torch.unique_consecutive(lengths, return_counts=True)
        starts = torch.cumsum(values * counts, 0) - values * counts
        runs = tuple(zip(starts.tolist(), values.tolist(), counts.tolist(), strict=True))
        ends = torch.cumsum(lengths, 0)
        positions = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends - lengths, lengths)
        angles = positions[:, None].float() * self.weights.inverse_frequencies
        return Layout(runs, torch.polar(torch.ones_like(angles), angles)[:, None, None, :])

    def embed(self, tokens: Tokens) -> Tensor:
        """Layer 0, [N, d]: `<mask>` is zero, the rest is scaled by 0.88 / (1 - masked share of its sequence)."""
        hidden = self.weights.embedding[tokens.ids]
        if not self.config.token_dropout:
            return hidden
        hidden *= 1 - MASKED_IN_TRAINING
        masked = tokens.ids == MASK
        if bool(masked.any()):
            hidden[masked] = 0.0
            counts = torch.segment_reduce(masked.float(), "sum", lengths=tokens.lengths)
            kept = 1 - counts / tokens.lengths
            hidden /= torch.repeat_interleave(kept, tokens.lengths)[:, None]
        return hidden

    def block(self, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        """Block `index` (0-based) on the residual stream [N, d] -> [N, d]."""
        block = self.weights.blocks[index]
        hidden = linear_add(
            self._attention(block, hidden, layout), block.attention_out.weight, block.attention_out.bias, hidden
        )
        out = torch.empty_like(hidden)
        for start in range(0, len(hidden), FFN_ROWS):
            rows = hidden[start : start + FFN_ROWS]
            wide = linear_gelu(self._norm(rows, block.ffn_norm), block.ffn_up.weight, block.ffn_up.bias)
            out[start : start + FFN_ROWS] = linear_add(wide, block.ffn_down.weight, block.ffn_down.bias, rows)
        return out

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The LayerNorm after the last block, [n, d] -> [n, d]."""
        return self._norm(hidden, self.weights.final_norm)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores from normalised rows, [n, d] -> [n, V]."""
        weights = self.weights
        hidden = self._norm(linear_gelu(hidden, weights.head_dense.weight, weights.head_dense.bias), weights.head_norm)
        return linear(hidden, weights.decoder.weight, weights.decoder.bias)

    def _attention(self, block: Block, hidden: Tensor, layout: Layout) -> Tensor:
        heads, width = self.config.num_attention_heads, self.config.head_dim
        qkv = linear(self._norm(hidden, block.attention_norm), block.qkv.weight, block.qkv.bias)
        torch.view_as_complex(qkv.view(-1, 3, heads, width // 2, 2)[:, :2]).mul_(layout.rotation)
        qkv = qkv.view(-1, 3, heads, width)
        out = torch.empty(len(hidden), heads, width, dtype=hidden.dtype)
        for start, length, count in layout.runs:
            tokens = slice(start, start + length * count)
            query, key, value = qkv[tokens].view(count, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
            attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
            out[tokens] = attended.transpose(1, 2).reshape(-1, heads, width)
        return out.view(len(hidden), -1)

    def _norm(self, hidden: Tensor, affine: Affine) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], affine.weight, affine.bias, self.config.layer_norm_eps)
