"""ESM-2's forward over packed sequences: no padding, fused projections, attention per sequence, early exit.

The arithmetic is that of transformers' `EsmForMaskedLM` in fp32; results agree to a few units of the last place
(tests/plms/test_contract.py). What differs is what is not done: no work on pads, no attention masks, no layers after
the wanted one, no rotary copies, and each residual sum and GELU inside the product before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from plmsae.plms.alphabet import ESM_MASK
from plmsae.plms.attention import attend
from plmsae.plms.base import ATTENTION, MLP, Tokens
from plmsae.plms.esm2_weights import Block, EsmWeights
from plmsae.plms.linear import Affine, linear, linear_add, linear_gelu
from plmsae.plms.network import Layout, Network, Tap, no_tap
from plmsae.plms.rotary import rotate_

# Share of tokens that ESM replaced by <mask> in training (15 % selected, 80 % of those masked). The embedding is
# scaled as if as many were masked now (EsmEmbeddings of transformers; `token_dropout` of fair-esm).
MASKED_IN_TRAINING = 0.15 * 0.8
FFN_ROWS = 1024  # rows per feed-forward call: the widened activations stay in the cache


class Esm2Network(Network):
    """ESM-2's layers."""

    def __init__(self, weights: EsmWeights) -> None:
        self.weights = weights
        self.config = weights.config
        self.num_layers = weights.config.num_hidden_layers
        self.d_model = weights.config.hidden_size
        self.inverse_frequencies = weights.inverse_frequencies

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Network.embed`: `<mask>` is zero, the rest is scaled by 0.88 / (1 - masked share of its sequence)."""
        embedding = self.weights.embedding
        ids = tokens.ids.to(embedding.device)
        hidden = embedding[ids]
        if not self.config.token_dropout:
            return hidden
        hidden *= 1 - MASKED_IN_TRAINING
        masked = ids == ESM_MASK
        if bool(masked.any()):
            hidden[masked] = 0.0
            lengths = tokens.lengths.to(ids.device)
            counts = torch.segment_reduce(masked.float(), "sum", lengths=lengths)
            kept = 1 - counts / lengths
            hidden /= torch.repeat_interleave(kept, lengths)[:, None]
        return hidden

    def block(self, index: int, hidden: Tensor, layout: Layout, tap: Tap = no_tap) -> Tensor:
        """See `Network.block`.

        The sums are inside the products, where a tap cannot see what is added: for it the product is made again, and
        a change of it is added as a difference, so that an edit that changes nothing gives the same bytes.
        """
        block = self.weights.blocks[index]
        attended = self._attend(block, hidden, layout)
        out = linear_add(attended, block.attention_out.weight, block.attention_out.bias, hidden)
        if tap is not no_tap:
            out = _tapped(out, linear(attended, block.attention_out.weight, block.attention_out.bias), ATTENTION, tap)
        hidden, out = out, torch.empty_like(out)
        added = torch.empty_like(out) if tap is not no_tap else None
        for start in range(0, len(hidden), FFN_ROWS):
            rows = slice(start, start + FFN_ROWS)
            normed = self._norm(hidden[rows], block.ffn_norm)
            wide = linear_gelu(normed, block.ffn_up.weight, block.ffn_up.bias, keep_type=True)
            out[rows] = linear_add(wide, block.ffn_down.weight, block.ffn_down.bias, hidden[rows])
            if added is not None:
                added[rows] = linear(wide, block.ffn_down.weight, block.ffn_down.bias)
        return out if added is None else _tapped(out, added, MLP, tap)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The LayerNorm after the last block, [n, d] -> [n, d]."""
        return self._norm(hidden, self.weights.final_norm)

    def head(self, hidden: Tensor) -> Tensor:
        """See `Network.head`."""
        head = self.weights.head
        assert head is not None
        hidden = self._norm(linear_gelu(hidden, head.dense.weight, head.dense.bias), head.norm)
        return linear(hidden, head.decoder.weight, head.decoder.bias)

    def _attend(self, block: Block, hidden: Tensor, layout: Layout) -> Tensor:
        heads, width = self.config.num_attention_heads, self.config.head_dim
        qkv = linear(self._norm(hidden, block.attention_norm), block.qkv.weight, block.qkv.bias)
        qkv = qkv.view(-1, 3, heads, width)
        rotate_(qkv[:, :2], layout.rotation)
        query, key, value = qkv.unbind(1)
        return attend(query, key, value, layout)

    def _norm(self, hidden: Tensor, affine: Affine) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], affine.weight, affine.bias, self.config.layer_norm_eps)


def _tapped(out: Tensor, added: Tensor, hook: str, tap: Tap) -> Tensor:
    new = tap(hook, added)
    return out if new is added else out + (new - added)
