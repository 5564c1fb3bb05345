"""Where to put the decoder bias at the start of the training."""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.errors import UserError, did_you_mean

CENTERS = ("geometric_median", "mean", "zero")


def starting_center(x: Tensor, kind: str) -> Tensor | None:
    """Where `b_dec` starts, from rows [N, d]: their `geometric_median`, their `mean`, or `zero` (None).

    Raises:
        UserError: There is no such start.
    """
    if kind not in CENTERS:
        raise UserError(f"unknown starting centre '{kind}'", where="train_sae.center", fix=did_you_mean(kind, CENTERS))
    if kind == "zero":
        return None
    return x.double().mean(0).to(x.dtype) if kind == "mean" else geometric_median(x)


def geometric_median(x: Tensor, *, max_iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of Euclidean distances to rows, by Weiszfeld's iteration in fp64.

    Outlier tokens pull it far less than the mean (Bricken et al. 2023 start `b_dec` there).

    Args:
        x: Rows [N, d], N >= 1.
        max_iterations: Give up and return the last point after so many; the iteration converges linearly.
        tolerance: Stop when the point moves by less than this share of the rows' RMS deviation.

    Returns:
        The point [d], in the dtype of x.
    """
    rows = x.double()
    point = rows.mean(0)
    spread = (rows - point).square().sum(1).mean().sqrt()
    for _ in range(max_iterations):
        distance = torch.linalg.vector_norm(rows - point, dim=1)
        # A row at the point itself would get infinite weight; the floor lets the others still move it.
        weight = 1.0 / distance.clamp_min(1e-9 * float(spread) + 1e-300)
        moved = (weight @ rows) / weight.sum()
        step = torch.linalg.vector_norm(moved - point)
        point = moved
        if step <= tolerance * spread:
            break
    return point.to(x.dtype)
