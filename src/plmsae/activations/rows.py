"""The stored forms of activation rows.

Floating-point types hold a row as its d_model values. int8 holds it as round(127 x / max |x|), then the fp32 scale
max |x| / 127 in four bytes (the machine's, little endian): a row is d_model + 4 values of type int8 and decodes alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 4


def encode(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 [n, d] -> the stored form, [n, d], or int8 [n, d + 4]."""
    if dtype != torch.int8:
        return rows.to(dtype)
    scale = rows.abs().amax(dim=1, keepdim=True) / 127
    values = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)).nan_to_num_().round_().clamp_(-127, 127)
    return torch.cat([values.to(torch.int8), scale.view(torch.int8)], dim=1)


def decode(stored: Tensor) -> Tensor:
    """The inverse of `encode` but for the rounding: fp32 [n, d]."""
    if stored.dtype != torch.int8:
        return stored.float()
    return stored[:, :-SCALE_BYTES].float() * stored[:, -SCALE_BYTES:].contiguous().view(torch.float32)
