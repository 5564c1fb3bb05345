"""What an import is told, and random tensors for files of other libraries.

The forwards in these tests are written from the other libraries' sources, in plain torch: dictionary_learning 60ec6bf,
SAELens 6, InterPLM 5f4cbf9, sparsify 001d98e, InterProt 5475143, Biohub esm 43b4548, OpenAI's sparse_autoencoder
764586a. Reconstructions are of size 1 and compared in fp32 to 1e-5.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

D, N, K = 12, 40, 5
TOLERANCE = 1e-5
TOLD: dict[str, Any] = {
    "plm": "esm2_t6_8M_UR50D",
    "plm_revision": "c731040f",
    "layer": 3,
    "hook": "residual",
    "normaliser": {"kind": "rms", "scale": 1.0, "folded": True},
}


class Draw:
    """Random tensors of given shapes, one after another."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3) -> Tensor:
        return scale * torch.randn(shape, generator=self.generator)


@pytest.fixture
def draw() -> Draw:
    return Draw()


@pytest.fixture
def x() -> Tensor:
    return Draw(7)(64, D, scale=1.0)


LAYER_NORM: dict[str, Any] = {"kind": "layer_norm", "epsilon": 1e-5}
TOKEN_RMS: dict[str, Any] = {"kind": "token_rms"}


def standardised(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mu) / (sigma + 1e-5), mu and sigma of every token, as InterProt, Biohub, OpenAI and SAELens do it."""
    mu = x.mean(dim=-1, keepdim=True)
    sigma = (x - mu).std(dim=-1, keepdim=True)
    return (x - mu) / (sigma + 1e-5), mu, sigma


def largest(values: Tensor, k: int) -> Tensor:
    """The k largest entries of every row where they stand, zero elsewhere."""
    top = values.topk(k, dim=-1)
    return torch.zeros_like(values).scatter(-1, top.indices, top.values)
