"""The amortisation gap: how far an encoder's codes are from the best codes for the same decoder.

Atoms are brought to unit norm and latents multiplied by the norm they lose, which changes no reconstruction; targets
are x - b_dec; codes are >= 0. Two comparisons, because an encoder is judged by objective or by sparsity:

Equal lambda. F(z) = 1/2 ||x - b_dec - D z||^2 + lambda sum_i z_i, of the encoder's codes and of the optimum, which
FISTA finds to a stated duality gap. Shares are ratios of means over tokens:

    excess     (F_encoder - F_optimum) / F_optimum, 0 for a perfect encoder
    attained   (F(0) - F_encoder) / (F(0) - F_optimum), 1 for a perfect encoder, 0 for one that is silent

An SAE trained with mean ||x - x^||^2 + penalty sum_i z_i has lambda = penalty / 2 (`sparse_coding`), times the scale
of its normaliser if that is folded. One without a penalty has no lambda of its own: by default the one is taken at
which the optimum is as sparse as the encoder, on average (mean L0, found by bisection).

Equal L0. Every token keeps as many atoms as its encoder uses, s_t. Atoms chosen by the encoder and atoms chosen by
orthogonal matching pursuit are refitted alike, by least squares on the support, so that only the choice is compared.
Finding the best s_t atoms is intractable, so the pursuit is a strong opponent but no bound: a negative gap says
that the encoder chose better than it. Coefficients may turn negative in the refit; their share is reported.

FVU is sum ||x - x^||^2 / sum ||x - mu||^2 over the tokens given, mu their mean.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.matching_pursuit import orthogonal_matching_pursuit, refit, support_of
from plmsae.saes.sparse_coding import lipschitz_bound, objective, sparse_code

TOKENS_AT_ONCE = 512
TOKENS_TO_CALIBRATE = 256
LOWEST_PENALTY = 1e-4  # of the largest correlation, above which every code is zero
BISECTIONS = 16
L0_TOLERANCE = 0.01


@dataclass(frozen=True)
class AmortisationGap:
    """Means over tokens; see the module docstring. Objectives are in squared units of x.

    Attributes:
        num_tokens: N.
        penalty: lambda, for unit atoms and half the squared error.
        num_unconverged: Tokens whose optimum did not reach the tolerance.
        certificate: Mean duality gap: the true optimum lies at most this far below `objective_optimum`.
        objective_zero: F(0), half the mean squared norm of the targets.
        objective_encoder: F of the encoder's codes.
        objective_optimum: F of the optimum.
        l0_encoder: Atoms per token that the encoder uses.
        l0_optimum: Atoms per token in the optimum.
        l0_pursuit: Atoms per token that the pursuit took: `l0_encoder`, or less where it had nothing left to explain.
        fvu_encoder: FVU of the SAE as it is.
        fvu_optimum: FVU of the optimum; the penalty shrinks its codes.
        fvu_encoder_refit: FVU of least squares on the encoder's atoms.
        fvu_optimum_refit: FVU of least squares on the optimum's atoms.
        fvu_pursuit: FVU of least squares on the pursuit's atoms.
        negative_encoder: Share of the encoder's atoms whose refitted coefficient is negative.
        negative_pursuit: The same for the pursuit's atoms.
    """

    num_tokens: int
    penalty: float
    num_unconverged: int
    certificate: float
    objective_zero: float
    objective_encoder: float
    objective_optimum: float
    l0_encoder: float
    l0_optimum: float
    l0_pursuit: float
    fvu_encoder: float
    fvu_optimum: float
    fvu_encoder_refit: float
    fvu_optimum_refit: float
    fvu_pursuit: float
    negative_encoder: float
    negative_pursuit: float

    @property
    def excess(self) -> float:
        """(F_encoder - F_optimum) / F_optimum."""
        return (self.objective_encoder - self.objective_optimum) / self.objective_optimum

    @property
    def attained(self) -> float:
        """(F(0) - F_encoder) / (F(0) - F_optimum); 0 where the optimum is silent too."""
        possible = self.objective_zero - self.objective_optimum
        return (self.objective_zero - self.objective_encoder) / possible if possible > 0 else 0.0

    @property
    def fvu_gap(self) -> float:
        """`fvu_encoder_refit` - `fvu_pursuit`: what the encoder's choice of atoms costs at equal L0."""
        return self.fvu_encoder_refit - self.fvu_pursuit

    def metrics(self) -> dict[str, float | int]:
        """All numbers, flat."""
        return {**dataclasses.asdict(self), "excess": self.excess, "attained": self.attained, "fvu_gap": self.fvu_gap}


@torch.no_grad()
def amortisation_gap(
    sae: SparseAutoencoder,
    x: Tensor,
    *,
    penalty: float | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 5000,
) -> AmortisationGap:
    """Compare an SAE's encoder with sparse coding on its own decoder.

    Args:
        sae: Any architecture, baselines included.
        x: Activations as the SAE takes them, [N, d].
        penalty: lambda; if not given, the one at which the optimum's mean L0 is the encoder's (within 1 %, where there
            is such a one above 1e-4 of the largest correlation), measured on at most 256 tokens spread over x.
        tolerance: Relative duality gap of the optimum, a share of F(0) of each token.
        max_iterations: The most FISTA steps per token.

    Raises:
        UserError: x is of another width or empty, or an argument is out of range.
        DataError: x holds NaN or infinity or does not vary, or the encoder fires on none of it.
    """
    if x.ndim == 2 and len(x) == 0:
        raise UserError("there are no tokens to compare codes on", where="x", fix="pass activations [N, d]")
    x = sae.check_input(x)
    norms = torch.linalg.vector_norm(sae.atoms.double(), dim=1)
    atoms = torch.where(norms[:, None] > 0, sae.atoms.double() / norms.clamp_min(1e-300)[:, None], 0.0)
    centre = sae.b_dec.double()
    variation = float((x.double() - x.double().mean(0)).square().sum())
    if variation == 0:
        raise DataError("the activations do not vary", where="x", fix="pass different tokens")
    lipschitz = lipschitz_bound(atoms)
    if penalty is None:
        some = x[torch.linspace(0, len(x) - 1, min(len(x), TOKENS_TO_CALIBRATE)).long()]
        l0 = float((sae.encode(some) * norms > 0).sum(1).double().mean())
        penalty = _penalty_of(l0, some.double() - centre, atoms, lipschitz, tolerance, max_iterations)

    sums: dict[str, float] = {}
    unconverged = 0
    for rows in torch.split(x, TOKENS_AT_ONCE):
        target = rows.double() - centre
        codes = sae.encode(rows).double() * norms
        best = sparse_code(
            target, atoms, penalty, tolerance=tolerance, max_iterations=max_iterations, lipschitz=lipschitz
        )
        chosen = support_of(codes)
        pursued = orthogonal_matching_pursuit(target, atoms, chosen.sizes)
        refitted, pursuit = refit(target, atoms, chosen), refit(target, atoms, pursued)
        unconverged += int((~best.converged).sum())
        for name, value in {
            "certificate": best.gap,
            "objective_zero": 0.5 * target.square(),
            "objective_encoder": objective(target, atoms, codes, penalty),
            "objective_optimum": best.objective,
            "l0_encoder": chosen.sizes,
            "l0_optimum": best.codes > 0,
            "l0_pursuit": pursued.sizes,
            "fvu_encoder": (target - codes @ atoms).square(),
            "fvu_optimum": (target - best.codes @ atoms).square(),
            "fvu_encoder_refit": (target - refitted @ atoms).square(),
            "fvu_optimum_refit": (target - refit(target, atoms, support_of(best.codes)) @ atoms).square(),
            "fvu_pursuit": (target - pursuit @ atoms).square(),
            "negative_encoder": refitted < 0,
            "negative_pursuit": pursuit < 0,
        }.items():
            sums[name] = sums.get(name, 0.0) + float(value.double().sum())
    divisors = {
        "fvu": variation,
        "negative_encoder": max(sums["l0_encoder"], 1.0),
        "negative_pursuit": max(sums["l0_pursuit"], 1.0),
    }
    means = {
        name: total / divisors.get(name, divisors["fvu"] if name.startswith("fvu") else len(x))
        for name, total in sums.items()
    }
    return AmortisationGap(num_tokens=len(x), penalty=penalty, num_unconverged=unconverged, **means)


def _penalty_of(l0: float, x: Tensor, atoms: Tensor, lipschitz: float, tolerance: float, max_iterations: int) -> float:
    """The lambda at which the optimum of targets [N, d] has a mean L0 of `l0`, or comes closest."""
    highest = float((x @ atoms.T).max())
    if l0 == 0 or highest <= 0:
        raise DataError(
            "the encoder fires on none of the tokens, so no penalty makes the optimum as sparse",
            where="x",
            fix="pass a penalty, or activations of the layer that the SAE was trained on",
        )
    # In between, L0 falls as lambda grows, all but monotonically: keep the closest of the values tried.
    low, high = math.log(LOWEST_PENALTY * highest), math.log(highest)
    # Every solve starts at zero, as the one that is reported does: at a finite gap the support depends on the start.
    closest, best = math.inf, math.exp(low)
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        codes = sparse_code(
            x, atoms, math.exp(middle), tolerance=tolerance, max_iterations=max_iterations, lipschitz=lipschitz
        ).codes
        found = float((codes > 0).sum(1).double().mean())
        if abs(found - l0) < closest:
            closest, best = abs(found - l0), math.exp(middle)
        if closest <= L0_TOLERANCE * l0:
            break
        low, high = (middle, high) if found > l0 else (low, middle)
    return best
