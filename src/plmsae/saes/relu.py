"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity", appendix on the autoencoders).

    z = ReLU(W_enc (x - b_dec) + b_enc);   x^ = W_dec^T z + b_dec
    L = mean_t ||x - x^||^2 + lambda * mean_t sum_i z_i                  reconstruction: squared
    L = mean_t ||x - x^||   + lambda * mean_t sum_i z_i                  reconstruction: unsquared

Atoms have unit norm, and the part of their gradient along themselves is removed before Adam: otherwise the penalty
would be lowered by long atoms and small latents. b_dec starts at the geometric median.

InterPLM (Simon and Zou 2024) takes the norm as it is, not its square. Both terms then scale with the input, so one
lambda serves activations of any scale; the lambdas of the two forms do not compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from plmsae.saes.config import SaeConfig
from plmsae.saes.constraints import remove_parallel_, unit_rows_
from plmsae.saes.dictionary import Dictionary, Terms, mean_squared_error
from plmsae.saes.options import choice, number
from plmsae.saes.products import PRECISIONS

RECONSTRUCTIONS = ("squared", "unsquared")
INITIAL_ENCODERS = ("atoms", "uniform")


class ReLU(Dictionary):
    """See the module docstring.

    Options: `penalty`, lambda for activations of unit mean squared norm (default 0.1, as dictionary_learning);
    `reconstruction`, squared (default) or unsquared; `initial_norm` of atoms (default 1; the first step brings them to
    1 whatever it is); `initial_encoder`, the atoms (default) or uniform in +-1 / sqrt(d_model).
    """

    default_options: ClassVar[Mapping[str, Any]] = {
        "penalty": 0.1,
        "reconstruction": "squared",
        "initial_norm": 1.0,
        "initial_encoder": "atoms",
    }
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    reaches: ClassVar[Mapping[str, frozenset[str]]] = {
        "reconstruction": frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
        "penalty": frozenset({"W_enc", "b_enc", "b_dec"}),
    }

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.penalty = number(self.options, "penalty", fix="0.1")
        self.unsquared = choice(self.options, "reconstruction", RECONSTRUCTIONS) == "unsquared"
        self.initial_norm = number(self.options, "initial_norm", above=True, fix="1")
        choice(self.options, "initial_encoder", INITIAL_ENCODERS)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """See the base class and the options."""
        super().initialise(generator, center)
        if self.initial_norm != 1:
            self.W_dec.mul_(self.initial_norm)
            self.W_enc.copy_(self.W_dec)
        if self.options["initial_encoder"] == "uniform":
            bound = 1 / math.sqrt(self.config.d_model)
            self.W_enc.copy_((2 * torch.rand(self.W_enc.shape, generator=generator) - 1) * bound)

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._centred_affine(x, self.b_enc).relu_()

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """See the module docstring; `dead` is not used."""
        del dead
        z = self._centred_affine(x, self.b_enc, self.precision).relu_()
        x_hat = self._decoded(z)
        squared = mean_squared_error(x, x_hat)
        # The gradient of the norm is 0, not NaN, where nothing is left to explain.
        error = torch.linalg.vector_norm(x - x_hat, dim=1).mean() if self.unsquared else squared
        values = {"reconstruction": error, "penalty": z.sum() / len(x)}
        return Terms(values, {"reconstruction": 1.0, "penalty": self.penalty_factor * self.penalty}, squared, z > 0)

    def constrain_gradients(self) -> None:
        """See the base class; atoms that do not start with norm 1 are taken by their direction."""
        if self.initial_norm == 1:
            super().constrain_gradients()
        elif self.W_dec.grad is not None:
            directions = self.W_dec.detach().clone()
            unit_rows_(directions)
            remove_parallel_(self.W_dec.grad, directions)
