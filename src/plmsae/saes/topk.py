"""TopK SAE with AuxK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders").

    p = W_enc (x - b_dec) + b_enc;   z = ReLU(TopK_k(p));   x^ = W_dec^T z + b_dec
    L = mean_t ||x - x^||^2 + alpha * L_aux,   L_aux = ||ê - e||^2 / ||e - mean_t e||^2

where e = x - x^ is held constant, ê = W_dec^T ReLU(TopK_{k_aux}(p restricted to dead latents)) has no bias, and
alpha = 1/32. Atoms have unit norm. A pick whose value is zero does not count as firing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from plmsae.saes.base import LossTerms
from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Dictionary, Terms, mean_squared_error
from plmsae.saes.options import aux_options
from plmsae.saes.pairs import Pairs
from plmsae.saes.products import PRECISIONS
from plmsae.saes.sparse_step import SparseStep, StepSettings, Workspace, encode_rows, per_variance, select_aux

ALL = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})


class TopK(Dictionary):
    """See the module docstring.

    Options: `aux_k`, latents that AuxK may use per token (default d_model // 2); `aux_alpha`, its weight.
    """

    default_options: ClassVar[Mapping[str, Any]] = {"aux_k": None, "aux_alpha": 1 / 32}
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    # AuxK holds the residual constant: b_dec is reached through the encoder's input alone.
    reaches: ClassVar[Mapping[str, frozenset[str]]] = {"reconstruction": ALL, "aux": ALL}

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.aux_k, self.aux_alpha = aux_options(self.options, config.d_model, config.dictionary_size)
        self._work = Workspace()

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._largest_of_each(self._pre_activations(x), self.config.k)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; always k columns."""
        x = self.encoder_input(x)
        return encode_rows(x - self.b_dec, self.W_enc, self.b_enc, self.config.k, self._work)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """See the base class and the module docstring."""
        if self.kernel == "reference":
            return super().loss(x, dead)
        x = self.standardise(x).rows
        indices = None if dead is None else dead.nonzero().flatten()
        total, reconstruction, aux, latents, values = SparseStep.apply(  # type: ignore[no-untyped-call]
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec, indices, self._step_settings()
        )
        counts = torch.zeros(self.config.dictionary_size, dtype=torch.int64, device=x.device)
        counts.index_add_(0, latents, (values > 0).long())
        return LossTerms(total, reconstruction.detach(), aux.detach(), counts)

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """The loss as the paper writes it, left to autograd: the reference for `SparseStep`."""
        pre = self._pre_activations(x)
        z = self._selected(pre)
        x_hat = z @ self.W_dec + self.b_dec
        error = mean_squared_error(x, x_hat)
        aux = self._aux(x, x_hat, pre, dead)
        return Terms(
            {"reconstruction": error, "aux": aux}, {"reconstruction": 1.0, "aux": self.aux_alpha}, error, z > 0
        )

    def _step_settings(self) -> StepSettings:
        return StepSettings(self._select, self.aux_k, self.aux_alpha, precision=self.precision, group=self.group)

    def _select(self, centered: Tensor) -> Pairs:
        """The active pairs of a training step for x - b_dec [B, d]."""
        return Pairs.of_rows(
            *encode_rows(centered, self.W_enc, self.b_enc, self.training_k, self._work, self.precision)
        )

    def _selected(self, pre: Tensor) -> Tensor:
        """The same from pre-activations [B, n], dense."""
        return self._largest_of_each(pre, self.training_k)

    def _pre_activations(self, x: Tensor) -> Tensor:
        return (x - self.b_dec) @ self.W_enc.t() + self.b_enc

    def _largest_of_each(self, pre: Tensor, k: int) -> Tensor:
        top = pre.topk(k, dim=1)
        return torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())

    def _aux(self, x: Tensor, x_hat: Tensor, pre: Tensor, dead: Tensor | None) -> Tensor:
        """AuxK on pre-activations [B, n]; 0 without dead latents."""
        if dead is None or not bool(dead.any()) or not self.aux_alpha:
            return x.new_zeros(())
        residual = (x - x_hat).detach()
        error = select_aux(pre[:, dead], self.aux_k) @ self.W_dec[dead] - residual
        return error.square().sum() * per_variance(residual, (x - self.b_dec).detach(), self.group)
