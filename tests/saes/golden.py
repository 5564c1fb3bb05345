"""Weights and rows from formulas alone, on which the losses of other libraries were evaluated in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

D, N, B = 6, 16, 24


def wave(rows: int, columns: int, step: float, phase: float) -> Tensor:
    grid = torch.arange(rows, dtype=torch.float64).unsqueeze(1) * 1.7 + torch.arange(columns, dtype=torch.float64) * 0.9
    return torch.sin(step * grid + phase)


def weights() -> dict[str, Tensor]:
    """W_enc [16, 6], unit atoms W_dec [16, 6], and biases and thresholds [16] of every architecture; b_dec [6]."""
    atoms = wave(N, D, 1.3, 0.2)
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    return {
        "W_enc": atoms + 0.3 * wave(N, D, 2.1, 1.0),
        "W_dec": atoms,
        "b_enc": 0.2 * wave(N, 1, 0.8, 0.5).flatten(),
        "b_mag": 0.2 * wave(N, 1, 1.1, 0.1).flatten(),
        "r_mag": 0.3 * wave(N, 1, 0.6, 0.9).flatten(),
        "threshold": 0.1 + 0.05 * wave(N, 1, 1.9, 0.3).flatten(),
        "b_dec": 0.3 * wave(1, D, 1.0, 0.7).flatten(),
    }


ROWS = wave(B, D, 0.77, 0.4) + 0.5 * wave(B, D, 3.3, 1.4)
