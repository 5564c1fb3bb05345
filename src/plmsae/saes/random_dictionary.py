"""Baseline: random unit atoms with a tied encoder and the selection of TopK, behind the same interface as an SAE.

    z = ReLU(TopK_k(W (x - b_dec)));   x^ = W^T z + b_dec

W is isotropic and never trained. What an SAE's latents mean beyond this is due to training, not to having many
directions to choose from. Its atoms overlap and are not refitted, so its reconstruction is poor by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.constraints import unit_rows_
from plmsae.saes.sparse_step import Workspace, encode_rows


class RandomDictionary(SparseAutoencoder):
    """n random atoms `W_dec` [n, d], drawn by the seed of `build`; `b_dec` [d] is the mean of the activations."""

    W_dec: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("W_dec", torch.zeros(config.dictionary_size, config.d_model))
        self.register_buffer("b_dec", torch.zeros(config.d_model))
        self._work = Workspace()

    @property
    def atoms(self) -> Tensor:
        """`W_dec` [n, d]; rows have norm 1."""
        return self.W_dec

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Random unit atoms, `b_dec = center`."""
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        unit_rows_(self.W_dec)
        self.b_dec.zero_() if center is None else self.b_dec.copy_(center)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        centered = self.encoder_input(x) - self.b_dec
        return encode_rows(centered, self.W_dec, self.W_dec.new_zeros(len(self.W_dec)), self.config.k, self._work)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """There is nothing to train.

        Raises:
            UserError: Always.
        """
        del x, dead
        raise UserError("the baseline 'random' is not trained", fix="train another architecture, e.g. topk")

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Atoms back to norm 1."""
        unit_rows_(self.W_dec)
