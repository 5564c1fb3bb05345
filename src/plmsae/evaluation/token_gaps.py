"""Encoder, optimum and pursuit token by token: what the amortisation gap is made of (definitions in `amortisation`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.plms.parallel import ordered_map
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.matching_pursuit import orthogonal_matching_pursuit, refit, support_of
from plmsae.saes.sparse_coding import Solution, lipschitz_bound, objective, sparse_code

TOKENS_AT_ONCE = 32  # codes of a block stay in the cache of one core, and its tokens finish at much the same time
TOKENS_TO_CALIBRATE = 64
LOWEST_PENALTY = 1e-4  # of the largest correlation, above which every code is zero
LARGEST_STEP = math.log(4.0)
SOLVES = 16
L0_TOLERANCE = 0.01


@dataclass(frozen=True)
class TokenGaps:
    """N tokens at one penalty.

    Attributes:
        penalty: lambda, for unit atoms and half the squared error.
        x: [N, d] as the encoder's first matrix takes them: standardised where the SAE's normaliser works per token.
        values: Name -> float64 [N]. `objective_zero`, `objective_encoder`, `objective_optimum` and `certificate`, the
            duality gap of the optimum, in squared units of x; `l0_*`, atoms used; `error_*`, squared errors;
            `negative_*`, atoms whose refitted coefficient is negative; `unconverged`, 1 where the optimum did not
            reach the tolerance.
    """

    penalty: float
    x: Tensor
    values: Mapping[str, Tensor]


@torch.no_grad()
def token_gaps(
    sae: SparseAutoencoder,
    x: Tensor,
    *,
    penalty: float | None,
    tolerance: float,
    max_iterations: int,
    threads: int,
) -> TokenGaps:
    """Compare codes token by token; the arguments are those of `amortisation.amortisation_gap`.

    Raises:
        UserError: x is of another width or empty, or an argument is out of range.
        DataError: x holds NaN or infinity or does not vary, or the encoder fires on none of it and no penalty is given.
    """
    if x.ndim == 2 and len(x) == 0:
        raise UserError("there are no tokens to compare codes on", where="x", fix="pass activations [N, d]")
    raw = sae.check_input(x)
    x = sae.standardise(raw).rows
    if bool((x == x[0]).all()):
        raise DataError("the activations do not vary", where="x", fix="pass different tokens")
    norms = torch.linalg.vector_norm(sae.atoms.double(), dim=1)
    atoms = torch.where(norms[:, None] > 0, sae.atoms.double() / norms.clamp_min(1e-300)[:, None], 0.0)
    problem = _Problem(atoms, lipschitz_bound(atoms), tolerance, max_iterations)
    target = x.double() - sae.b_dec.double()
    if penalty is None:
        some = torch.linspace(0, len(x) - 1, min(len(x), TOKENS_TO_CALIBRATE)).long()
        l0 = float((sae.encode(raw[some]) * norms > 0).sum(1).double().mean())
        penalty = _penalty_of(l0, target[some], problem, threads)
    chosen = penalty

    @torch.no_grad()
    def run(block: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        given, rows = block
        return _compare(rows, sae.encode(given).double() * norms, problem, chosen)

    blocks = zip(torch.split(raw, TOKENS_AT_ONCE), torch.split(target, TOKENS_AT_ONCE))
    pieces = list(ordered_map(run, blocks, threads))
    return TokenGaps(penalty, x, {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]})


@dataclass(frozen=True)
class _Problem:
    """Unit atoms [n, d], the Lipschitz constant, and when to stop."""

    atoms: Tensor
    lipschitz: float
    tolerance: float
    max_iterations: int

    def solve(self, target: Tensor, penalty: float) -> Solution:
        """The optimum of targets [N, d], from a start at zero."""
        return sparse_code(
            target,
            self.atoms,
            penalty,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            lipschitz=self.lipschitz,
        )

    def sizes(self, target: Tensor, penalty: float) -> Tensor:
        """Atoms per token in the optimum, int64 [N]."""
        return (self.solve(target, penalty).codes > 0).sum(1)


@torch.no_grad()
def _compare(target: Tensor, codes: Tensor, problem: _Problem, penalty: float) -> dict[str, Tensor]:
    atoms = problem.atoms
    best = problem.solve(target, penalty)
    chosen, solved = support_of(codes), support_of(best.codes)
    pursued = orthogonal_matching_pursuit(target, atoms, chosen.sizes)
    refitted, pursuit = refit(target, atoms, chosen), refit(target, atoms, pursued)

    def error(z: Tensor) -> Tensor:
        return (target - z @ atoms).square().sum(1)

    found = {
        "certificate": best.gap,
        "objective_zero": 0.5 * target.square().sum(1),
        "objective_encoder": objective(target, atoms, codes, penalty),
        "objective_optimum": best.objective,
        "l0_encoder": chosen.sizes,
        "l0_optimum": solved.sizes,
        "l0_pursuit": pursued.sizes,
        "error_encoder": error(codes),
        "error_optimum": error(best.codes),
        "error_encoder_refit": error(refitted),
        "error_optimum_refit": error(refit(target, atoms, solved)),
        "error_pursuit": error(pursuit),
        "negative_encoder": (refitted < 0).sum(1),
        "negative_pursuit": (pursuit < 0).sum(1),
        "unconverged": ~best.converged,
    }
    return {name: value.double() for name, value in found.items()}


def _penalty_of(l0: float, target: Tensor, problem: _Problem, threads: int) -> float:
    """The lambda at which the optimum of targets [N, d] has a mean L0 of `l0`, or comes closest.

    In between, L0 falls as lambda grows, all but monotonically. The search comes down from the lambda of empty codes,
    where a solve is cheap, and then interpolates log L0 in log lambda; the closest of the values tried is kept.
    """
    highest = float((target @ problem.atoms.T).max())
    if l0 == 0 or highest <= 0:
        raise DataError(
            "the encoder fires on none of the tokens, so no penalty makes the optimum as sparse",
            where="x",
            fix="pass a penalty, or activations of the layer that the SAE was trained on",
        )
    lowest = math.log(LOWEST_PENALTY * highest)
    sparse, dense = (math.log(highest), -math.inf), (lowest, math.inf)  # (log lambda, log of its L0 over `l0`)
    place, closest, best = math.log(highest) - LARGEST_STEP, math.inf, 0.0
    blocks = torch.split(target, TOKENS_AT_ONCE)
    for _ in range(SOLVES):
        tried = math.exp(place)
        # From zero, as the solve that is reported: at a finite gap the support depends on the start.
        active = list(ordered_map(partial(problem.sizes, penalty=tried), blocks, threads))
        found = float(torch.cat(active).double().mean()) / l0
        if abs(found - 1) < closest:
            closest, best = abs(found - 1), tried
        if closest <= L0_TOLERANCE or place <= lowest:
            break
        excess = math.log(found) if found > 0 else -math.inf
        if excess < 0:
            sparse = (place, excess)
        else:
            dense = (place, excess)
        place = _between(sparse, dense)
    return best


def _between(sparse: tuple[float, float], dense: tuple[float, float]) -> float:
    """The next log lambda to try: a step down while nothing is too dense, then where the line between meets 0."""
    (upper, below), (lower, above) = sparse, dense
    if above == math.inf:
        return max(lower, upper - LARGEST_STEP)
    if below == -math.inf:
        return 0.5 * (lower + upper)
    # Not too near an end, or a curved function would move only one of them.
    share = min(max(above / (above - below), 0.1), 0.9)
    return lower + share * (upper - lower)
