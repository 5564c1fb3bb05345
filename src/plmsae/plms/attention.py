"""Attention within each sequence of a packed batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from plmsae.plms.linear import linear, onednn_serves
from plmsae.plms.network import Layout

# PyTorch's fused attention on a CPU takes its products from MKL, which does not use AVX-512 on AMD processors; head by
# head through oneDNN they cost less as soon as they are large enough to hide the calls (measured on Zen 5, one thread,
# width 64: 0.75 of the time at 300 tokens, 0.6 at 512 and more; at width 16 never less than 0.8).
_LEAST_WIDTH = 32
_LEAST_SIZE = 16_384  # tokens times width
_ROWS = 512  # scores [512, L] of one head stay in the cache


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    scale: float = 1.0,
    causal: bool = False,
    bias: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Attention within each sequence.

    Args:
        query: [N, heads, width]; key and value alike.
        key: See `query`.
        value: See `query`.
        layout: Where the sequences lie.
        scale: Factor of the scores.
        causal: A token sees itself and those before it.
        bias: Length L -> [heads, L, L] to add to the scores.

    Returns:
        [N, heads * width].
    """
    width = query.shape[-1]
    plain = not causal and bias is None and width >= _LEAST_WIDTH and onednn_serves(query, key)
    out = torch.empty(len(query), *query.shape[1:], dtype=query.dtype, device=query.device)
    for start, length, count in layout.runs:
        if plain and length * width >= _LEAST_SIZE:
            for first in range(start, start + length * count, length):
                rows = slice(first, first + length)
                _attend_by_head(query[rows] * scale, key[rows], value[rows], out[rows])
            continue
        tokens = slice(start, start + length * count)
        q, k, v = (part[tokens].view(count, length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value))
        mask = bias(length) if bias is not None else None
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
        out[tokens] = attended.transpose(1, 2).reshape(-1, *query.shape[1:])
    return out.view(len(query), -1)


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
    """One sequence: query, key, value [L, heads, width] -> out [L, heads, width]."""
    queries, keys, values = query.transpose(0, 1).contiguous(), key.transpose(0, 1).contiguous(), value.permute(1, 2, 0)
    for head, (q, k, v) in enumerate(zip(queries, keys, values.contiguous(), strict=True)):
        for start in range(0, len(q), _ROWS):
            rows = slice(start, start + _ROWS)
            scores = linear(q[rows], k, None)
            torch.softmax(scores, -1, out=scores)
            out[rows, head] = linear(scores, v, None)
