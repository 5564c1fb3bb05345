"""Unit-norm atoms: without them an SAE lowers its penalty or its pre-activations by rescaling alone."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows_(rows: Tensor) -> None:
    """Scale every row of [n, d] to norm 1 in place; a zero row stays zero."""
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(torch.finfo(rows.dtype).tiny))


def remove_parallel_(gradient: Tensor, rows: Tensor) -> None:
    """Take out of each gradient row its component along the unit row [n, d], in place.

    Done before the optimiser: Adam would otherwise spend its moments on a direction that `unit_rows_` undoes
    (Bricken et al. 2023, "Sparse autoencoder training").
    """
    along = torch.linalg.vecdot(gradient, rows)
    gradient.addcmul_(rows, along.unsqueeze(1), value=-1.0)
