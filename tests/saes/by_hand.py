"""Weights and rows whose latents can be worked out on paper: two dimensions; atoms e1, e2 and (0.6, 0.8)."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from plmsae.saes import build
from plmsae.saes.dictionary import Dictionary
from tests.saes.conftest import config_of

S = TypeVar("S", bound=Dictionary)

# Above b_dec = (1, 1) by (3, 0), (0, 2), (3, 4), (-1, -1). W_enc (x - b_dec) is then
# (3, 0, 1.8), (0, 2, 1.6), (3, 4, 5), (-1, -1, -1.4), and with b_enc = (0, 0, -0.5)
# (3, 0, 1.3), (0, 2, 1.1), (3, 4, 4.5), (-1, -1, -1.9).
ROWS = torch.tensor([[4.0, 1.0], [1.0, 3.0], [4.0, 5.0], [0.0, 0.0]])


def by_hand(kind: type[S], architecture: str, k: int, **options: Any) -> S:
    sae = build(config_of(architecture, d_model=2, dictionary_size=3, k=k, options=options))
    assert isinstance(sae, kind)
    fill(sae.W_dec, [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    fill(sae.W_enc, [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    fill(sae.b_dec, [1.0, 1.0])
    if "b_enc" in sae.encoder_biases:
        fill(sae.b_enc, [0.0, 0.0, -0.5])
    return sae


def fill(tensor: Tensor, values: list[Any]) -> None:
    with torch.no_grad():
        tensor.copy_(torch.tensor(values))
