"""Linear layers of the packed forward, with the activation or the residual sum fused in.

For fp32 on a CPU PyTorch's own `F.linear` goes to MKL, which on AMD processors does not use AVX-512: oneDNN, which
every x86 build of PyTorch carries, does the same product in less than half the time (measured on Zen 5) and adds
GELU or the residual for free. The operator that reaches it is the one that PyTorch's compiler emits; where it is
missing or gives another result than `F.linear`, `F.linear` is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a linear layer ([out, in] and [out]) or a LayerNorm ([d] each)."""

    weight: Tensor
    bias: Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` for x [N, in], weight [out, in], bias [out] -> [N, out] in the type of x.

    A weight of another type than x makes the product in its own type.
    """
    if weight.dtype != x.dtype:
        product = F.linear(x.to(weight.dtype), weight).to(x.dtype)
        return product if bias is None else product.add_(bias)
    if _onednn_serves(x, weight):
        return _operators()[0](x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (the exact one, with erf) of `linear`."""
    if _onednn_serves(x, weight):
        return _operators()[0](x, weight, bias, "gelu", [], "none")  # type: ignore[no-any-return]
    return F.gelu(linear(x, weight, bias))


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`residual + linear(x)` with residual [N, out]."""
    if _onednn_serves(x, weight):
        return _operators()[1](x, residual, weight, bias, "add")  # type: ignore[no-any-return]
    return residual + linear(x, weight, bias)


def kernel() -> str:
    """`onednn` or `aten`: which implementation serves fp32 on the CPU here."""
    return "onednn" if _operators() is not None else "aten"


def _onednn_serves(x: Tensor, weight: Tensor) -> bool:
    fp32 = x.dtype == weight.dtype == torch.float32
    return x.device.type == "cpu" and fp32 and _operators() is not None


@cache
def _operators() -> Any:
    """The plain and the residual-adding operator, or None where they do not do what is expected of them."""
    try:
        plain: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        binary: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.binary
        x, weight = torch.arange(24.0).view(3, 8).sin(), torch.arange(32.0).view(4, 8).cos()
        bias, residual = torch.arange(4.0), torch.arange(12.0).view(3, 4)
        expected = F.linear(x, weight, bias)
        agree = (
            torch.allclose(plain(x, weight, bias, "none", [], ""), expected, atol=1e-5)
            and torch.allclose(plain(x, weight, bias, "gelu", [], "none"), F.gelu(expected), atol=1e-5)
            and torch.allclose(binary(x, residual, weight, bias, "add"), expected + residual, atol=1e-5)
        )
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    return (plain, binary) if agree else None
