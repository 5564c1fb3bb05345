"""Matryoshka BatchTopK SAE (Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka SAEs", section 3).

One BatchTopK over the whole dictionary; nested prefixes m_1 < ... < m_G = n of it must each reconstruct alone:

    x^_j = b_dec + sum_{i <= m_j} z_i W_dec[i]
    L    = reduction of ||x - x^_j||^2 over j  +  alpha * L_aux        (AuxK on the residual of x^_G)

so early latents become general and later ones add detail. The reductions in use differ:

    paper                 sum over j
    dictionary_learning   sum over j / G^2: weights 1/G, and a mean on top. AuxK then weighs G^2 times as much
    reference             mean over the G prefixes and the bias alone, ||x - b_dec||^2 (bartbussmann/matryoshka_sae)

Prefixes are decoded one group at a time, so all of them cost as much as one full decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.saes.batch_topk import BatchTopK
from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Terms, mean_squared_error
from plmsae.saes.options import choice, group_sizes
from plmsae.saes.sparse_step import StepSettings
from plmsae.saes.topk import TopK

REDUCTIONS = ("paper", "dictionary_learning", "reference")
# Shares of the dictionary, as published: the power law is the default of Reticular's training code, `steering` is
# what its SASA steering study used.
FRACTIONS: Mapping[str, tuple[float, ...]] = {
    "power_law": (0.0273, 0.0427, 0.0759, 0.1708, 0.6833),
    "steering": (0.002, 0.0156, 0.125, 0.8574),
}


def sizes_of(fractions: tuple[float, ...], dictionary_size: int) -> list[int]:
    """Group sizes: whole parts of the shares, the last group takes the remainder (as dictionary_learning does).

    Raises:
        UserError: A share is not positive, or they do not sum to 1 within 1e-3.
    """
    if not fractions or not all(0 < share <= 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-3:
        raise UserError(
            f"group fractions {list(fractions)} are not positive shares that sum to 1",
            where="group_fractions",
            fix=f"choose one of {', '.join(FRACTIONS)}, or shares that sum to 1",
        )
    sizes = [int(share * dictionary_size) for share in fractions[:-1]]
    return [*sizes, dictionary_size - sum(sizes)]


class Matryoshka(BatchTopK):
    """See the module docstring.

    Attributes:
        groups: Sizes of the groups; they sum to n.
        prefixes: Their cumulative sums m_1, ..., m_G = n.

    Options: those of `TopK`; `group_sizes`, whole numbers that sum to n (default: the power law); `reduction`.
    """

    default_options: ClassVar[Mapping[str, Any]] = {
        **TopK.default_options,
        "group_sizes": None,
        "reduction": "paper",
    }

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        if self.options["group_sizes"] is None:
            self.options["group_sizes"] = sizes_of(FRACTIONS["power_law"], config.dictionary_size)
        self.groups = group_sizes(self.options, config.dictionary_size)
        self.prefixes = tuple(sum(self.groups[: count + 1]) for count in range(len(self.groups)))
        choice(self.options, "reduction", REDUCTIONS)

    def prefix_reconstructions(self, z: Tensor) -> list[Tensor]:
        """x^_1, ..., x^_G, each [..., d], of latents [..., n]."""
        x_hat: Tensor = self.b_dec
        out: list[Tensor] = []
        for first, last in pairwise((0, *self.prefixes)):
            x_hat = x_hat + z[..., first:last] @ self.W_dec[first:last]
            out.append(x_hat)
        return out

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """See the module docstring."""
        pre = self._pre_activations(x)
        z = self._selected(pre)
        reconstructions = self.prefix_reconstructions(z)
        errors = [mean_squared_error(x, x_hat) for x_hat in reconstructions]
        weight, bias_weight = self._weights()
        reconstruction = weight * torch.stack(errors).sum()
        if bias_weight:
            reconstruction = reconstruction + bias_weight * mean_squared_error(x, self.b_dec)
        values = {"reconstruction": reconstruction, "aux": self._aux(x, reconstructions[-1], pre, dead)}
        return Terms(values, {"reconstruction": 1.0, "aux": self.aux_alpha}, errors[-1], z > 0)

    def _step_settings(self) -> StepSettings:
        weight, bias_weight = self._weights()
        return replace(super()._step_settings(), weights=(weight,) * len(self.prefixes), bias_weight=bias_weight)

    def _weights(self) -> tuple[float, float]:
        """Weight of the squared error of every prefix, and of that of b_dec alone."""
        num_prefixes = len(self.prefixes)
        if self.options["reduction"] == "reference":
            return 1 / (num_prefixes + 1), 1 / (num_prefixes + 1)
        return (1.0 if self.options["reduction"] == "paper" else 1 / num_prefixes**2), 0.0
