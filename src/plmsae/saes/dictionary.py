"""What the trained architectures share: two matrices, biases, unit-norm atoms, and a loss made of named terms.

    p = W_enc (x - b_dec) + b_enc;   x^ = W_dec^T z + b_dec

An architecture says how z follows from p (`latents`) and which terms its loss has (`terms`). Both are written as in
its paper, dense, and left to autograd; `TopK` and what derives from it have a faster step too (`sparse_step.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from plmsae.saes.affine import affine, plain_affine
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.constraints import remove_parallel_, unit_rows_
from plmsae.saes.products import product
from plmsae.saes.selection import rows_per_block, sparse_rows

REVIVED_ENCODER = 0.2


@dataclass(frozen=True)
class Terms:
    """A loss in parts.

    Attributes:
        values: Name -> scalar to differentiate, before its weight. The first is the reconstruction, the second, if
            there is one, what the curves show beside it.
        weights: Name -> weight in the total; the same names.
        squared_error: ||x - x^||^2 of the full reconstruction, averaged over tokens.
        fired: Which latents are above zero, bool [B, n].
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, float | Tensor]
    squared_error: Tensor
    fired: Tensor

    @property
    def total(self) -> Tensor:
        """The weighted sum."""
        first, *others = self.values
        total = self.weights[first] * self.values[first]
        for name in others:
            total = total + self.weights[name] * self.values[name]
        return total

    @property
    def aux(self) -> Tensor:
        """The term that the curves show beside the reconstruction, a detached scalar."""
        return next((value.detach() for value in list(self.values.values())[1:]), torch.zeros_like(self.squared_error))


class Dictionary(SparseAutoencoder):
    """See the module docstring."""

    encoder_biases: ClassVar[tuple[str, ...]] = ("b_enc",)
    unit_norm: ClassVar[bool] = True
    pre_bias: bool = True  # whether b_dec is taken off before the encoder
    # Loss term -> the parameters that its gradient reaches, and no others; the contract tests compare.
    reaches: ClassVar[Mapping[str, frozenset[str]]]

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        n, d = config.dictionary_size, config.d_model
        self.W_enc = nn.Parameter(torch.zeros(n, d))
        for name in self.encoder_biases:
            setattr(self, name, nn.Parameter(torch.zeros(n)))
        self.W_dec = nn.Parameter(torch.zeros(n, d))
        self.b_dec = nn.Parameter(torch.zeros(d))

    @property
    def atoms(self) -> Tensor:
        """`W_dec` [n, d]; rows have norm 1 where `unit_norm` says so."""
        return self.W_dec

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Random unit atoms, `W_enc = W_dec`, encoder biases 0, `b_dec = center`."""
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        unit_rows_(self.W_dec)
        self.W_enc.copy_(self.W_dec)
        for name in self.encoder_biases:
            getattr(self, name).zero_()
        self.b_dec.zero_() if center is None else self.b_dec.copy_(center)

    @abstractmethod
    def latents(self, x: Tensor) -> Tensor:
        """Latents z [N, n] of checked activations [N, d], dense; what `encode` returns."""

    @abstractmethod
    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """The training loss of a batch [B, d] in parts, as the paper writes it; `dead` as in `loss`."""

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class: blocks of dense latents, and of each the positive ones."""
        x = self.encoder_input(x)
        return sparse_rows(self.latents, x, rows_per_block(len(self.W_enc), x.device))

    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """See the base class; the weighted sum of `terms` of standardised activations."""
        terms = self.terms(self.standardise(x).rows, dead)
        return LossTerms(terms.total, terms.squared_error.detach(), terms.aux, terms.fired.sum(0))

    def _centred_affine(self, x: Tensor, bias: Tensor | None, precision: str = "float32") -> Tensor:
        """W_enc (x - b_dec) + bias [B, n], spared a matrix product in the backward pass unless by reference."""
        if self.kernel == "reference":
            return plain_affine(x, self.W_enc, bias, self.b_dec)
        return affine(x, self.W_enc, bias, self.b_dec, precision)

    def _decoded(self, z: Tensor) -> Tensor:
        """Reconstruction [B, d] of latents [B, n] in a training step."""
        return product(z, self.W_dec, self.precision) + self.b_dec

    @torch.no_grad()
    def revive(self, latents: Tensor, directions: Tensor) -> None:
        """Start latents anew (Bricken et al. 2023, resampling): atom and encoder row along a direction, biases 0.

        Atoms get the mean norm of the others, encoder rows a fifth of theirs, so that a new latent disturbs little.
        Without a bias before the encoder, the encoder's bias takes b_dec off.

        Args:
            latents: int64 [m], which to start anew.
            directions: Inputs minus b_dec [m, d], of any length but 0.
        """
        others = torch.ones(len(self.W_enc), dtype=torch.bool, device=latents.device)
        others[latents] = False
        unit = directions.clone()
        unit_rows_(unit)
        for rows, share in ((self.W_dec, 1.0), (self.W_enc, REVIVED_ENCODER)):
            norms = torch.linalg.vector_norm(rows[others], dim=1)
            rows[latents] = unit * (share * (norms.mean() if len(norms) else 1.0))
        for name in self.encoder_biases:
            getattr(self, name)[latents] = 0.0
        if not self.pre_bias:
            self.b_enc[latents] = -(self.W_enc[latents] @ self.b_dec)

    def constrain_gradients(self) -> None:
        """Remove the part of the atoms' gradient that would only change their norm."""
        if self.unit_norm and self.W_dec.grad is not None:
            remove_parallel_(self.W_dec.grad, self.W_dec.data)

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Atoms back to norm 1."""
        if self.unit_norm:
            unit_rows_(self.W_dec)


def mean_squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """||x - x^||^2 summed over d and averaged over tokens [B, d], a scalar."""
    return (x - x_hat).square().sum() / len(x)
