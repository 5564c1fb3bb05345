"""ReLU SAE with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity", appendix on the autoencoders).

    z = ReLU(W_enc (x - b_dec) + b_enc);   x^ = W_dec^T z + b_dec
    L = mean_t ||x - x^||^2 + lambda * mean_t sum_i z_i

Atoms have unit norm, and the part of their gradient along themselves is removed before Adam: otherwise the penalty
would be lowered by long atoms and small latents. b_dec starts at the geometric median.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Dictionary, Terms, mean_squared_error
from plmsae.saes.options import number


class ReLU(Dictionary):
    """See the module docstring.

    Options: `penalty`, lambda for activations of unit mean squared norm (default 0.1, as dictionary_learning).
    """

    default_options: ClassVar[Mapping[str, Any]] = {"penalty": 0.1}
    reaches: ClassVar[Mapping[str, frozenset[str]]] = {
        "reconstruction": frozenset({"W_enc", "b_enc", "W_dec", "b_dec"}),
        "penalty": frozenset({"W_enc", "b_enc", "b_dec"}),
    }

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.penalty = number(self.options, "penalty", fix="0.1")

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._centred_affine(x, self.b_enc).relu_()

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """See the module docstring; `dead` is not used."""
        del dead
        z = self.latents(x)
        error = mean_squared_error(x, z @ self.W_dec + self.b_dec)
        values = {"reconstruction": error, "penalty": z.sum() / len(x)}
        return Terms(values, {"reconstruction": 1.0, "penalty": self.penalty_factor * self.penalty}, error, z > 0)
