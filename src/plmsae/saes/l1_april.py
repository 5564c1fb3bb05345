"""ReLU SAE with a penalty weighted by the atoms' norms (Conerly et al. 2024, "Update on how we train SAEs", April).

    z = ReLU(W_enc x + b_enc);   x^ = W_dec^T z + b_dec            (no bias is taken off before the encoder)
    L = mean_t ||x - x^||^2 + lambda * mean_t sum_i z_i ||W_dec[i]||

The product z_i ||W_dec[i]|| does not change when an atom is lengthened and its latent shortened, so atoms need no
constraint; the gradient flows through their norms. lambda rises linearly over the first 5 % of the training. At the
end `with_unit_atoms` moves the norms into the encoder, which changes no reconstruction.

The paper scales activations to a mean norm of sqrt(d) and takes lambda = 5; for unit mean squared norm the same
optimum has lambda = 5 / sqrt(d), the default.

dictionary_learning's trainer of that name does take b_dec off before the encoder. With `pre_bias` the training does so
too; since W_enc (x - b_dec) + b_enc = W_enc x + (b_enc - W_enc b_dec), `with_unit_atoms` gives it the form above.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.constraints import unit_rows_
from plmsae.saes.dictionary import Dictionary, Terms, mean_squared_error
from plmsae.saes.options import flag, number
from plmsae.saes.products import PRECISIONS, product

INITIAL_NORM = 0.1


class L1April(Dictionary):
    """See the module docstring.

    Options: `penalty`, lambda for activations of unit mean squared norm (default 5 / sqrt(d_model)); `pre_bias`,
    whether b_dec is taken off before the encoder (default false).
    """

    default_options: ClassVar[Mapping[str, Any]] = {"penalty": None, "pre_bias": False}
    unit_norm: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    reaches: ClassVar[Mapping[str, frozenset[str]]] = {
        "reconstruction": frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
        "penalty": frozenset({"W_enc", "b_enc", "W_dec"}),
    }

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.pre_bias = flag(self.options, "pre_bias")
        if self.options["penalty"] is None:
            self.options["penalty"] = 5 / math.sqrt(config.d_model)
        self.penalty = number(self.options, "penalty", fix="5 / sqrt(d_model)")

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Random atoms of norm 0.1, `W_enc = W_dec`, all biases 0 as in the paper: `center` is not used."""
        del center
        super().initialise(generator)
        self.W_dec.mul_(INITIAL_NORM)
        self.W_enc.copy_(self.W_dec)

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._rectified(x, "float32")

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """See the module docstring; `dead` is not used."""
        del dead
        z = self._rectified(x, self.precision)
        error = mean_squared_error(x, self._decoded(z))
        values = {"reconstruction": error, "penalty": (z @ torch.linalg.vector_norm(self.W_dec, dim=1)).sum() / len(x)}
        return Terms(values, {"reconstruction": 1.0, "penalty": self.penalty_factor * self.penalty}, error, z > 0)

    def _rectified(self, x: Tensor, precision: str) -> Tensor:
        rows = x - self.b_dec if self.pre_bias else x
        if precision != "float32":
            return (product(rows, self.W_enc.t(), precision) + self.b_enc).relu()
        return torch.addmm(self.b_enc, rows, self.W_enc.t()).relu()

    @torch.no_grad()
    def with_unit_atoms(self) -> SparseAutoencoder:
        """See the base class: encoder rows and biases times the atoms' norms; an atom of norm 0 is silent after.

        A bias before the encoder becomes part of the encoder's bias.
        """
        twin = copy.deepcopy(self)
        if twin.pre_bias:
            twin.b_enc.sub_(twin.W_enc @ twin.b_dec)
            twin.pre_bias = twin.options["pre_bias"] = False
            kept = {name: value for name, value in self.config.options.items() if name != "pre_bias"}
            twin.config = self.config.replace(options=kept)
        norms = torch.linalg.vector_norm(self.W_dec, dim=1)
        unit_rows_(twin.W_dec)
        twin.W_enc.mul_(norms.unsqueeze(1))
        twin.b_enc.mul_(norms)
        twin.latent_max.mul_(norms)
        return twin
