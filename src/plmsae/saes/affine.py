"""W_enc (x - b_dec) + bias with gradients to the weights alone.

Autograd would differentiate with respect to x - b_dec, which is a matrix product of 2 B d n operations, only to sum the
result over the tokens. Summing first leaves a product with one vector: db_dec = -(sum_t g_t) W_enc.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, bias: Tensor | None, b_dec: Tensor) -> Tensor:
        ctx.save_for_backward(x, W_enc, b_dec)
        return plain_affine(x, W_enc, bias, b_dec)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, b_dec = ctx.saved_tensors
        (g,) = grad_outputs
        total = g.sum(0)
        return None, g.t() @ (x - b_dec), total if ctx.needs_input_grad[2] else None, -(total @ W_enc)


def affine(x: Tensor, W_enc: Tensor, bias: Tensor | None, b_dec: Tensor) -> Tensor:
    """W_enc (x - b_dec) + bias, [B, n] of x [B, d]; left to autograd where x needs a gradient itself."""
    if x.requires_grad:
        return plain_affine(x, W_enc, bias, b_dec)
    return _Affine.apply(x, W_enc, bias, b_dec)  # type: ignore[no-untyped-call,no-any-return]


def plain_affine(x: Tensor, W_enc: Tensor, bias: Tensor | None, b_dec: Tensor) -> Tensor:
    """The same, left to autograd."""
    centered = x - b_dec
    return centered @ W_enc.t() if bias is None else torch.addmm(bias, centered, W_enc.t())
