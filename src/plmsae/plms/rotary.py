"""Rotary position embedding (Su et al. 2021) as a multiplication of complex numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequencies(theta: float, width: int) -> Tensor:
    """theta^(-2i / width) for i = 0 .. width / 2 - 1, fp32 [width / 2]."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    return 1.0 / (theta**exponents)


def paired_rows(heads: int, width: int) -> Tensor:
    """An order of the rows of a projection [heads * width, d], int64 [heads * width].

    Where a model pairs dimension i of a head with i + width / 2, the reordered rows have each pair side by side. Query
    and key reordered alike have the same dot products.
    """
    pairs = torch.arange(width).view(2, width // 2).T.reshape(-1)
    return (torch.arange(heads)[:, None] * width + pairs).reshape(-1)


def rotate_(rows: Tensor, factors: Tensor) -> None:
    """Rotate pairs that lie side by side, in place.

    Args:
        rows: fp32 [N, k, heads, w], a view whose last dimension is contiguous.
        factors: complex64 [N, 1, 1, w / 2].
    """
    torch.view_as_complex(rows.unflatten(-1, (-1, 2))).mul_(factors)  # type: ignore[no-untyped-call]
