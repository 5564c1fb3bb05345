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
    """`x @ weight.T + bias` for x [N, in], weight [out, in], bias [out] -> fp32 [N, out].

    A weight in bf16 makes the product in bf16, with sums in fp32; the bias stays fp32.
    """
    if onednn_serves(x, weight):
        return _product(x, weight, bias, "none").float()
    return _plain(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, *, keep_type: bool = False) -> Tensor:
    """GELU (the exact one, with erf) of `linear`; with `keep_type` in the type of the weight, for a product with it."""
    if onednn_serves(x, weight):
        wide = _product(x, weight, bias, "gelu")
        return wide if keep_type else wide.float()
    wide = F.gelu(_plain(x, weight, bias))
    return wide.to(weight.dtype) if keep_type else wide


def linear_add(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`residual + linear(x)` with residual fp32 [N, out]; the sum is made in fp32."""
    if not onednn_serves(x, weight):
        return residual + _plain(x, weight, bias)
    if weight.dtype == torch.float32:
        return _operators(torch.float32)[1](x, residual, weight, bias, "add")  # type: ignore[no-any-return]
    return residual + _product(x, weight, bias, "none")


def kernel() -> str:
    """`onednn` or `aten`: which implementation serves fp32 on the CPU here."""
    return "onednn" if _operators(torch.float32) is not None else "aten"


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX); on others it is slower than fp32.

    Asked of PyTorch at run time, which asks the processor.
    """
    import torch.cpu as cpu

    asks = [getattr(cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(ask is not None and bool(ask()) for ask in asks) and _operators(torch.bfloat16) is not None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    """oneDNN's product in the type of the weight."""
    algorithm = "none" if then == "gelu" else ""
    return _operators(weight.dtype)[0](x.to(weight.dtype), weight, bias, then, [], algorithm)  # type: ignore[no-any-return]


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    product = F.linear(x.to(weight.dtype), weight).float()
    return product if bias is None else product.add_(bias)


def onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` of these goes to oneDNN."""
    return x.device.type == "cpu" and _operators(weight.dtype) is not None


@cache
def _operators(dtype: torch.dtype) -> Any:
    """The plain and the residual-adding operator, or None where they do not do what is expected of them."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    try:
        plain: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        binary: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.binary
        x, weight = torch.arange(24.0).view(3, 8).sin().to(dtype), torch.arange(32.0).view(4, 8).cos().to(dtype)
        bias, residual = torch.arange(4.0), torch.arange(12.0).view(3, 4)
        expected = F.linear(x.float(), weight.float(), bias)
        agree = torch.allclose(plain(x, weight, bias, "none", [], "").float(), expected, atol=tolerance)
        agree &= torch.allclose(plain(x, weight, bias, "gelu", [], "none").float(), F.gelu(expected), atol=tolerance)
        if dtype == torch.float32:
            agree &= torch.allclose(binary(x, residual, weight, bias, "add"), expected + residual, atol=tolerance)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    return (plain, binary) if agree else None
