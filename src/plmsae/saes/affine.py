"""W_enc (x - b_dec) + bias with gradients to the weights alone.

Autograd would differentiate with respect to x - b_dec, which is a matrix product of 2 B d n operations, only to sum the
result over the tokens. Summing first leaves a product with one vector: db_dec = -(sum_t g_t) W_enc.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plmsae.saes.products import multiply, product


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W_enc: Tensor, bias: Tensor | None, b_dec: Tensor, precision: str) -> Tensor:
        ctx.save_for_backward(x, W_enc, b_dec)
        ctx.precision = precision
        return plain_affine(x, W_enc, bias, b_dec, precision)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc, b_dec = ctx.saved_tensors
        (g,) = grad_outputs
        total = g.sum(0)
        dW_enc = multiply(g.t(), x - b_dec, ctx.precision)
        return None, dW_enc, total if ctx.needs_input_grad[2] else None, -(total @ W_enc), None


def affine(x: Tensor, W_enc: Tensor, bias: Tensor | None, b_dec: Tensor, precision: str = "float32") -> Tensor:
    """W_enc (x - b_dec) + bias, [B, n] of x [B, d]; left to autograd where x needs a gradient itself."""
    if x.requires_grad:
        return plain_affine(x, W_enc, bias, b_dec, precision)
    return _Affine.apply(x, W_enc, bias, b_dec, precision)  # type: ignore[no-untyped-call,no-any-return]


def plain_affine(x: Tensor, W_enc: Tensor, bias: Tensor | None, b_dec: Tensor, precision: str = "float32") -> Tensor:
    """The same, left to autograd."""
    centered = x - b_dec
    if precision != "float32":
        pre = product(centered, W_enc.t(), precision)
        return pre if bias is None else pre + bias
    return centered @ W_enc.t() if bias is None else torch.addmm(bias, centered, W_enc.t())
