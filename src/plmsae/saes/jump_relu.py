"""JumpReLU SAE (Rajamanoharan et al. 2024b, "Jumping Ahead", sections 3 and 4; Gemma Scope).

    p = W_enc x + b_enc;   z = p where p > theta, zero elsewhere;   x^ = W_dec^T z + b_dec
    L = mean_t ||x - x^||^2 + lambda * mean_t sum_i H(p_i - theta_i)

theta [n] is a parameter of its own, kept raw and in fp32: as a logarithm it hardly moves under Adam. The jump has no
useful gradient, so the expected one is estimated with a rectangular kernel of width eps (their section 3):

    d z_i / d theta_i = -(theta_i / eps) K((p_i - theta_i) / eps)        K(u) = 1 for |u| < 1/2, else 0
    d H / d theta_i   = -(1 / eps)       K((p_i - theta_i) / eps)        and no gradient to p from H

K is centred at p = theta on the pre-activation. A kernel on z, as dictionary_learning has it in the penalty, sees its
upper half alone (`penalty_kernel: latents`).

With `target_l0` there are two ways to that number of active latents, by `l0_control`:

    quadratic    lambda (L0 / target - 1)^2 instead, L0 the mean of sum_i H over the batch (dictionary_learning). The
                 reconstruction pulls against it: L0 stays above the target, the more so the smaller lambda
    controller   the penalty above, with a lambda that the training adjusts until L0 = target (training/l0_control.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plmsae.saes.config import SaeConfig
from plmsae.saes.dictionary import Dictionary, Terms, mean_squared_error
from plmsae.saes.group import mean_of
from plmsae.saes.options import choice, number
from plmsae.saes.products import PRECISIONS, product

L0_CONTROLS = ("controller", "quadratic")
PENALTY_KERNELS = ("pre_activations", "latents")


def kernel(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K((p - theta) / eps) of pre-activations [B, n] and thresholds [n]: 1 or 0."""
    return ((pre - threshold).abs() < 0.5 * bandwidth).to(pre.dtype)


class _Jump(torch.autograd.Function):
    """z of p [B, n] and theta [n]; the gradient to p passes where p > theta."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        (g,) = grad_outputs
        estimate = (g * kernel(pre, threshold, ctx.bandwidth)).sum(0)
        return g * (pre > threshold), -threshold / ctx.bandwidth * estimate, None


class _Heaviside(torch.autograd.Function):
    """H(p - theta) of p [B, n] and theta [n]; no gradient to p."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        (g,) = grad_outputs
        return None, -(g * kernel(pre, threshold, ctx.bandwidth)).sum(0) / ctx.bandwidth, None


class JumpReLU(Dictionary):
    """See the module docstring.

    Attributes:
        threshold: theta [n] >= 0, a parameter with an optimiser group and a gradient clip of its own.

    Options, all for activations of unit mean squared norm: `penalty`, lambda, with the controller its start (default
    1e-3, or 1 if quadratic); `target_l0`, wanted mean number of latents per token (default none); `l0_control`,
    quadratic (default) or controller; `bandwidth`, eps (default 0.001); `initial_threshold` (default 0.001);
    `penalty_kernel`, pre_activations (default) or latents.
    """

    default_options: ClassVar[Mapping[str, Any]] = {
        "penalty": None,
        "target_l0": None,
        "l0_control": "quadratic",
        "bandwidth": 0.001,
        "initial_threshold": 0.001,
        "penalty_kernel": "pre_activations",
    }
    homogeneous: ClassVar[tuple[str, ...]] = (*Dictionary.homogeneous, "threshold")
    pre_bias: bool = False
    betas: ClassVar[tuple[float, float]] = (0.0, 0.999)
    own_group: ClassVar[tuple[str, ...]] = ("threshold",)
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    reaches: ClassVar[Mapping[str, frozenset[str]]] = {
        "reconstruction": frozenset({"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}),
        "penalty": frozenset({"threshold"}),
    }

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.target_l0 = None
        if self.options["target_l0"] is not None:
            self.target_l0 = number(self.options, "target_l0", above=True, fix="32, or null for none")
        self.quadratic = choice(self.options, "l0_control", L0_CONTROLS) == "quadratic" and self.target_l0 is not None
        if self.options["penalty"] is None:
            self.options["penalty"] = 1.0 if self.quadratic else 1e-3
        self.penalty = number(self.options, "penalty", above=self.controlled, fix="1e-3")
        choice(self.options, "penalty_kernel", PENALTY_KERNELS)
        self.bandwidth = number(self.options, "bandwidth", above=True, fix="0.001")
        self.initial_threshold = number(self.options, "initial_threshold", fix="0.001")
        self.threshold = nn.Parameter(torch.full((config.dictionary_size,), self.initial_threshold))

    @property
    def controlled(self) -> bool:
        """Whether a training adjusts the penalty until L0 is `target_l0`."""
        return self.target_l0 is not None and not self.quadratic

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, center: Tensor | None = None) -> None:
        """Random unit atoms, `W_enc = W_dec`, `b_dec = center`, `b_enc = -W_enc center`: the input starts centred."""
        super().initialise(generator, center)
        self.b_enc.copy_(-(self.W_enc @ self.b_dec))
        self.threshold.fill_(self.initial_threshold)

    def latents(self, x: Tensor) -> Tensor:
        """See the base class."""
        pre = self._pre_activations(x)
        return torch.where(pre > self.threshold, pre, 0.0)

    def terms(self, x: Tensor, dead: Tensor | None = None) -> Terms:
        """See the module docstring; `dead` is not used."""
        del dead
        pre = self._pre_activations(x, self.precision)
        z: Tensor = _Jump.apply(pre, self.threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        seen = z.detach() if self.options["penalty_kernel"] == "latents" else pre
        active: Tensor = _Heaviside.apply(seen, self.threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        error = mean_squared_error(x, self._decoded(z))
        penalty = active.sum() / len(x)
        if self.quadratic and self.target_l0 is not None:
            penalty = (mean_of(penalty, self.group) / self.target_l0 - 1.0).square()
        values = {"reconstruction": error, "penalty": penalty}
        return Terms(values, {"reconstruction": 1.0, "penalty": self.penalty_factor * self.penalty}, error, z > 0)

    @torch.no_grad()
    def revive(self, latents: Tensor, directions: Tensor) -> None:
        """See the base class; thresholds start anew."""
        super().revive(latents, directions)
        self.threshold[latents] = self.initial_threshold

    @torch.no_grad()
    def constrain_weights(self) -> None:
        """Atoms back to norm 1, thresholds back to 0 or more: below 0 a latent would fire with negative values."""
        super().constrain_weights()
        self.threshold.clamp_(min=0.0)

    def weights_problem(self) -> str | None:
        """See the base class."""
        negative = int((self.threshold < 0).sum())
        return f"{negative} thresholds are negative" if negative else None

    def _pre_activations(self, x: Tensor, precision: str = "float32") -> Tensor:
        if precision != "float32":
            return product(x, self.W_enc.t(), precision) + self.b_enc
        return torch.addmm(self.b_enc, x, self.W_enc.t())
