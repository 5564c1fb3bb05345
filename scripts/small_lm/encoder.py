"""The training forward pass of `EsmForMaskedLM` over documents that lie end to end.

The parameters are those of the transformers module; only the order of the work differs: no padding, fused
query-key-value product, attention document by document, everything else compiled for one fixed number of tokens.
`tests/scripts/test_small_lm.py` holds it equal to transformers' own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.small_lm.packing import Batch, Masked


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) of x [H, N, D] in float32."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _before_attention(
    x: Tensor, norm: tuple[Tensor, Tensor], weights: tuple[Tensor, ...], biases: tuple[Tensor, ...],
    cos: Tensor, sin: Tensor, num_heads: int, epsilon: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Residual stream x [N, d] -> query, key, value, each [H, N, D] of `dtype`."""
    head = x.shape[1] // num_heads
    normed = functional.layer_norm(x, x.shape[1:], *norm, eps=epsilon).to(dtype)
    joint = functional.linear(normed, torch.cat(weights).to(dtype), torch.cat(biases).to(dtype))
    query, key, value = joint.view(-1, 3, num_heads, head).permute(1, 2, 0, 3)
    query = _rotate(query.float() * head**-0.5, cos, sin).to(dtype).contiguous()
    key = _rotate(key.float(), cos, sin).to(dtype).contiguous()
    return query, key, value.contiguous()


def _after_attention(
    x: Tensor, attended: Tensor, out: tuple[Tensor, Tensor], norm: tuple[Tensor, Tensor],
    inner: tuple[Tensor, Tensor], outer: tuple[Tensor, Tensor], epsilon: float,
) -> Tensor:  # fmt: skip
    """Residual stream x [N, d] and attention's output [H, N, D] -> residual stream after the block [N, d]."""
    dtype = attended.dtype
    joined = attended.transpose(0, 1).reshape(x.shape)
    x = x + functional.linear(joined, out[0].to(dtype), out[1].to(dtype))
    normed = functional.layer_norm(x, x.shape[1:], *norm, eps=epsilon).to(dtype)
    hidden = functional.gelu(functional.linear(normed, inner[0].to(dtype), inner[1].to(dtype)))
    return x + functional.linear(hidden, outer[0].to(dtype), outer[1].to(dtype))


def attend(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """Softmax attention within each document: [H, N, D] -> [H, N, D].

    Plain batched products: on a CPU without AMX they are two to three times faster in bfloat16 than
    `scaled_dot_product_attention`'s kernel at the lengths of proteins.
    """
    parts = zip(*(torch.split(x, lengths, 1) for x in (query, key, value)), strict=True)
    return torch.cat([torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v) for q, k, v in parts], 1)


class PackedEncoder:
    """`EsmForMaskedLM` over a flat batch.

    Args:
        model: The module whose parameters are used (rotary, pre-LayerNorm, no embedding LayerNorm: as ESM-2).
        dtype: Type of the matrix products; the residual stream, LayerNorms and the head stay float32.
        compiled: Compile the parts around attention; every batch must then have the same number of tokens.
    """

    def __init__(self, model: Any, *, dtype: torch.dtype = torch.bfloat16, compiled: bool = False) -> None:
        self.model, self.dtype = model, dtype
        self.before: Callable[..., Any] = _before_attention
        self.after: Callable[..., Any] = _after_attention
        if compiled:
            self.before = torch.compile(_before_attention, dynamic=False)
            self.after = torch.compile(_after_attention, dynamic=False)

    def _rotations(self, lengths: list[int]) -> tuple[Tensor, Tensor]:
        config = self.model.config
        head = config.hidden_size // config.num_attention_heads
        inverse = config.rope_theta ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
        positions = torch.cat([torch.arange(length, dtype=torch.float32) for length in lengths])
        angles = (positions[:, None] * inverse).repeat(1, 2)
        return angles.cos(), angles.sin()

    def hidden(self, masked: Masked, lengths: list[int]) -> Tensor:
        """The residual stream after the final LayerNorm, float32 [N, d]."""
        esm, config = self.model.esm, self.model.config
        cos, sin = self._rotations(lengths)
        x = functional.embedding(torch.from_numpy(masked.ids), esm.embeddings.word_embeddings.weight)
        x = x * torch.from_numpy(masked.scale)[:, None]
        for block in esm.encoder.layer:
            inside = block.attention.self
            joint = (inside.query, inside.key, inside.value)
            query, key, value = self.before(
                x, _pair(block.attention.LayerNorm), tuple(m.weight for m in joint), tuple(m.bias for m in joint),
                cos, sin, config.num_attention_heads, config.layer_norm_eps, self.dtype,
            )  # fmt: skip
            x = self.after(
                x, attend(query, key, value, lengths), _pair(block.attention.output.dense), _pair(block.LayerNorm),
                _pair(block.intermediate.dense), _pair(block.output.dense), config.layer_norm_eps,
            )  # fmt: skip
        return functional.layer_norm(
            x, x.shape[1:], *_pair(esm.encoder.emb_layer_norm_after), eps=config.layer_norm_eps
        )

    def losses(self, batch: Batch, masked: Masked) -> Tensor:
        """Cross-entropy in nats at each selected position, float32 [num_selected]."""
        hidden = self.hidden(masked, batch.lengths)[torch.from_numpy(masked.selected)]
        logits = self.model.lm_head(hidden)
        return functional.cross_entropy(logits, torch.from_numpy(masked.targets), reduction="none")


def _pair(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.weight, module.bias  # type: ignore[return-value]
