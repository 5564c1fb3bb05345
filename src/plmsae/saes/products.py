"""Matrix products of a training step: in the precision of the weights, or with factors rounded to bf16.

bf16 has the range of fp32 and 8 bits of its 24. A product of bf16 factors has its sums in fp32; its entries come out
in fp32 on a GPU and rounded to bf16 on a CPU, whose library offers no more. All that follows (biases, comparisons,
losses, sums over tokens, gradients, Adam) is done in the precision of the weights, which are never rounded themselves.

By |sum (a'b' - ab)| <= (2^-8 + 2^-18) |a| |b|, the Cauchy-Schwarz inequality for factors rounded by at most 2^-9, an
entry is off by at most 0.4 % of the product of two norms, and on a CPU by 2^-9 of itself more; usually by far less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("float32", "bfloat16")


def multiply(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a @ b [m, n] of [m, p] and [p, n] without autograd, in the dtype of a."""
    return a @ b if precision == "float32" else rounded_multiply(a.bfloat16(), b.bfloat16()).to(a.dtype)


def rounded_multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of bf16 factors, without autograd: fp32 on a GPU, bf16 elsewhere."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.device.type == "cuda" else torch.mm(a, b)


class _Product(torch.autograd.Function):
    """a @ b by bf16 factors, and so are the products of the two gradients."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        low_a, low_b = a.bfloat16(), b.bfloat16()
        ctx.save_for_backward(low_a, low_b)
        ctx.dtype = a.dtype
        return rounded_multiply(low_a, low_b).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        low_a, low_b = ctx.saved_tensors
        g = grad_outputs[0].bfloat16()
        da = rounded_multiply(g, low_b.t()).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        db = rounded_multiply(low_a.t(), g).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return da, db


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a @ b [m, n] of [m, p] and [p, n], differentiable, in the dtype of a."""
    if precision == "float32":
        return a @ b
    return _Product.apply(a, b)  # type: ignore[no-untyped-call,no-any-return]
