"""Gated SAE (Rajamanoharan et al. 2024a, "Improving Dictionary Learning with Gated Sparse Autoencoders", section 3).

    h = W_enc (x - b_dec);   gate = h + b_gate;   z = ReLU(exp(r_mag) * h + b_mag) where gate > 0, zero elsewhere
    L = mean_t ||x - x^||^2 + lambda * mean_t sum_i ReLU(gate_i) + mean_t ||x - x^_frozen(ReLU(gate))||^2

Which latents fire and how strongly is decided apart, so the penalty does not shrink the values. The step of the gate
has no gradient: the gate learns from the penalty and from the last term, an auxiliary reconstruction by its own
rectified values, in which decoder and b_dec are held constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Dictionary, Terms, mean_squared_error
from plmsae.saes.options import number
from plmsae.saes.products import PRECISIONS, product


class Gated(Dictionary):
    """See the module docstring; there is no `b_enc`.

    Attributes:
        b_gate: Bias of the gate [n].
        b_mag: Bias of the value [n].
        r_mag: Logarithm of the value's scale relative to the gate's [n]; it does not scale with the input.

    Options: `penalty`, lambda for activations of unit mean squared norm (default 0.1, as dictionary_learning).
    """

    default_options: ClassVar[Mapping[str, Any]] = {"penalty": 0.1}
    encoder_biases: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")
    homogeneous: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "b_dec", "latent_max")
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    # Frozen in the last term: the decoder and b_dec as its offset. b_dec as the encoder's centre is not.
    reaches: ClassVar[Mapping[str, frozenset[str]]] = {
        "reconstruction": frozenset({"W_enc", "b_mag", "r_mag", "W_dec", "b_dec"}),
        "penalty": frozenset({"W_enc", "b_gate", "b_dec"}),
        "aux": frozenset({"W_enc", "b_gate", "b_dec"}),
    }

    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.penalty = number(self.options, "penalty", fix="0.1")

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._gated(self._centred_affine(x, None))[0]

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """See the module docstring; `dead` is not used."""
        del dead
        z, gate = self._gated(self._centred_affine(x, None, self.precision))
        error = mean_squared_error(x, self._decoded(z))
        open_gate = gate.relu()
        frozen = product(open_gate, self.W_dec.detach(), self.precision)
        values = {
            "reconstruction": error,
            "penalty": open_gate.sum() / len(x),
            "aux": mean_squared_error(x, frozen + self.b_dec.detach()),
        }
        weights = {"reconstruction": 1.0, "penalty": self.penalty_factor * self.penalty, "aux": 1.0}
        return Terms(values, weights, error, z > 0)

    def _gated(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Latents and gate pre-activations [B, n] of h [B, n]."""
        gate = h + self.b_gate
        z = torch.where(gate > 0, (torch.exp(self.r_mag) * h + self.b_mag).relu(), 0.0)
        return z, gate
