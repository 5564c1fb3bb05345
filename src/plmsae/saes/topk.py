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
from torch import Tensor, nn

from plmsae.errors import UserError
from plmsae.saes.base import LossTerms, SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.constraints import remove_parallel_, unit_rows_
from plmsae.saes.sparse_step import (
    SparseTopKStep,
    Workspace,
    encode_rows,
    per_variance,
    select_aux,
)


class TopK(SparseAutoencoder):
    """See the module docstring.

    Options: `aux_k`, latents that AuxK may use per token (default d_model // 2); `aux_alpha`, its weight.
    """

    default_options: ClassVar[Mapping[str, Any]] = {"aux_k": None, "aux_alpha": 1 / 32}

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        n, d = config.dictionary_size, config.d_model
        self.aux_k, self.aux_alpha = self._aux_options()
        self.W_enc = nn.Parameter(torch.zeros(n, d))
        self.b_enc = nn.Parameter(torch.zeros(n))
        self.W_dec = nn.Parameter(torch.zeros(n, d))
        self.b_dec = nn.Parameter(torch.zeros(d))
        self._work = Workspace()

    def _aux_options(self) -> tuple[int, float]:
        n = self.config.dictionary_size
        k_aux, alpha = self.options["aux_k"], self.options["aux_alpha"]
        if k_aux is None:
            k_aux = min(max(1, self.config.d_model // 2), n)
        if type(k_aux) is not int or not 1 <= k_aux <= n:
            raise UserError(f"option aux_k = {k_aux!r} is not in 1..{n}", where="options.aux_k", fix="lower aux_k")
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha < float("inf"):
            raise UserError(f"option aux_alpha = {alpha!r} is not a number >= 0", where="options.aux_alpha", fix="1/32")
        return k_aux, float(alpha)

    @property
    def atoms(self) -> Tensor:
        """`W_dec` [n, d]; rows have norm 1."""
        return self.W_dec

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Random unit atoms, `W_enc = W_dec`, `b_enc = 0`, `b_dec = center`."""
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        unit_rows_(self.W_dec)
        self.W_enc.copy_(self.W_dec)
        self.b_enc.zero_()
        self.b_dec.zero_() if center is None else self.b_dec.copy_(center)

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        x = self.check_input(x)
        return encode_rows(x - self.b_dec, self.W_enc, self.b_enc, self.config.k, self._work)

    def loss(self, x: Tensor, dead: Tensor | None = None) -> LossTerms:
        """See the base class and the module docstring."""
        if self.kernel == "reference":
            total, reconstruction, aux, fired = self._dense_loss(x, dead)
            return LossTerms(total, reconstruction.detach(), aux.detach(), fired.sum(0))
        indices = None if dead is None else dead.nonzero().flatten()
        total, reconstruction, aux, picks, values = SparseTopKStep.apply(  # type: ignore[no-untyped-call]
            x, self.W_enc, self.b_enc, self.W_dec, self.b_dec,
            indices, self.config.k, self.aux_k, self.aux_alpha, self._work,
        )  # fmt: skip
        counts = torch.zeros(self.config.dictionary_size, dtype=torch.int64, device=x.device)
        counts.index_add_(0, picks.flatten(), (values > 0).flatten().long())
        return LossTerms(total, reconstruction.detach(), aux.detach(), counts)

    def _dense_loss(self, x: Tensor, dead: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same loss as the papers write it, left to autograd: the reference for `SparseTopKStep`."""
        centered = x - self.b_dec
        pre = centered @ self.W_enc.t() + self.b_enc
        top = pre.topk(self.config.k, dim=1)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        x_hat = z @ self.W_dec + self.b_dec
        reconstruction = (x - x_hat).square().sum() / len(x)
        aux = x.new_zeros(())
        if dead is not None and bool(dead.any()) and self.aux_alpha:
            residual = (x - x_hat).detach()
            z_aux = select_aux(pre[:, dead], self.aux_k)
            error = z_aux @ self.W_dec[dead] - residual
            aux = error.square().sum() * per_variance(residual, centered.detach())
        return reconstruction + self.aux_alpha * aux, reconstruction, aux, z > 0

    def constrain_gradients(self) -> None:
        """Remove the part of the atoms' gradient that would only change their norm."""
        if self.W_dec.grad is not None:
            remove_parallel_(self.W_dec.grad, self.W_dec.data)

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Atoms back to norm 1."""
        unit_rows_(self.W_dec)
