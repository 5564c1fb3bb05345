"""Baseline: the residual stream's own axes as latents, behind the same interface as an SAE.

Latents 0..d-1 are ReLU(x - mean), latents d..2d-1 are ReLU(mean - x), so that both directions of a neuron count
as units of their own. The reconstruction is exact; what an SAE must beat is how well single units mean something.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.saes.config import SaeConfig


class Neurons(SparseAutoencoder):
    """2 d latents: each neuron above and below its mean. `b_dec` [d] is the mean; nothing is trained.

    Raises:
        UserError: `dictionary_size` is not 2 d_model, or `k` is not d_model (exactly one of each pair can fire).
    """

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        if config.dictionary_size != 2 * config.d_model or config.k != config.d_model:
            raise UserError(
                f"'neurons' of width {config.d_model} have {2 * config.d_model} latents and k = {config.d_model}, "
                f"not {config.dictionary_size} and {config.k}",
                where="dictionary_size, k",
                fix="set dictionary_size to 2 d_model and k to d_model",
            )
        self.register_buffer("b_dec", torch.zeros(config.d_model))

    @property
    def atoms(self) -> Tensor:
        """Plus and minus the unit vectors, [2 d, d]."""
        eye = torch.eye(self.config.d_model, dtype=self.b_dec.dtype, device=self.b_dec.device)
        return torch.cat([eye, -eye])

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Set the mean; the generator is not used."""
        del generator
        self.b_dec.zero_() if center is None else self.b_dec.copy_(center)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: of each pair the latent on x's side of the mean."""
        deviation = self.encoder_input(x) - self.b_dec
        neurons = torch.arange(self.config.d_model, device=x.device)
        return neurons + self.config.d_model * (deviation < 0), deviation.abs()

    def _decode_sparse_standardised(self, indices: Tensor, values: Tensor) -> Tensor:
        """See the base class, without building the atoms."""
        d = self.config.d_model
        signed = torch.where(indices < d, values, -values)
        return torch.zeros_like(signed).scatter_add(1, indices % d, signed) + self.b_dec

    def decode_standardised(self, z: Tensor) -> Tensor:
        """See the base class, without building the atoms."""
        d = self.config.d_model
        return z[..., :d] - z[..., d:] + self.b_dec

    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """There is nothing to train.

        Raises:
            UserError: Always.
        """
        del x, dead
        raise UserError("the baseline 'neurons' has no weights to train", fix="train another architecture, e.g. topk")
