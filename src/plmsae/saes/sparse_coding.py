"""Sparse coding on a fixed dictionary: the optimum that an SAE's encoder approximates, by ISTA and FISTA.

    F(z) = 1/2 ||x - D z||^2 + lambda ||z||_1        convention `half` (the lecture notes, Beck & Teboulle)
    F(z) =     ||x - D z||^2 + lambda ||z||_1        convention `full` (the losses of SAEs)

over all z (signed form) or over z >= 0 (the encoder's problem). The two conventions differ by a factor 2: `full` with
lambda is twice `half` with lambda / 2, so both have the same minimisers, and objectives and gaps are twice as large.
The columns of D are the rows of `atoms`.

Iteration, with L >= ||D||_2^2, a step of 1/L and S(v) = sign(v) max(|v| - lambda/L, 0), or max(v - lambda/L, 0) for
z >= 0 (Beck & Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems"):

    ISTA     z_k = S(z_{k-1} + D^T (x - D z_{k-1}) / L)                 F(z_k) - F* <= L ||z_0 - z*||^2 / (2 k)
    FISTA    the same step from y_k = z_{k-1} + (t_{k-1} - 1) / t_k (z_{k-1} - z_{k-2}),
             t_1 = 1, t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2             F(z_k) - F* <= 2 L ||z_0 - z*||^2 / (k + 1)^2

Duality gap. With u = x - D z as a variable of its own and multiplier w, the Lagrangian 1/2 ||u||^2 + lambda ||z||_1 +
w . (x - D z - u) is least over u at u = w, and bounded below over z only if |D^T w| <= lambda (D^T w <= lambda for
z >= 0). What remains is the dual: the maximum over such w of w . x - 1/2 ||w||^2. Any feasible w bounds F* from
below, so F(z) - F* <= gap = F(z) - w . x + 1/2 ||w||^2, and strong duality makes it 0 at the optimum with
w = x - D z. The point used is w = s r with r = x - D z and the best feasible s >= 0:
s = min(x . r / ||r||^2, lambda / max |D^T r|).
A token stops when its gap is at most `tolerance` F(0), F(0) = 1/2 ||x||^2: scaling x and lambda changes nothing.

Everything runs in float64, because a gap is a difference of nearly equal numbers. N tokens, d = d_model, n atoms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError

Method = Literal["ista", "fista"]
Convention = Literal["half", "full"]
LIPSCHITZ_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Solution:
    """What `sparse_code` found, per token; objectives and gaps in units of its convention.

    Attributes:
        codes: z, float64 [N, n]; exact zeros off the support.
        objective: F(z), float64 [N].
        gap: Upper bound of F(z) - F*, float64 [N].
        iterations: Steps taken, int64 [N].
        converged: Whether the gap reached the tolerance, bool [N]; otherwise the token ran out of iterations, and
            `gap` still bounds how far from the optimum it is.
        lipschitz: L, the inverse of the step (of the convention `half`).
        history: F(z_0), F(z_1), ... float64 [steps + 1, N] if it was asked for; a stopped token keeps its last value.
    """

    codes: Tensor
    objective: Tensor
    gap: Tensor
    iterations: Tensor
    converged: Tensor
    lipschitz: float
    history: Tensor | None = None

    def require_converged(self) -> Solution:
        """The solution itself, if every token reached the tolerance.

        Raises:
            DataError: Some did not; the message says how many, and the largest gap.
        """
        missing = int((~self.converged).sum())
        if missing:
            raise DataError(
                f"{missing} of {len(self.converged)} tokens did not reach the duality gap within "
                f"{int(self.iterations.max())} iterations; the largest gap left is {float(self.gap.max()):.3g}",
                where="sparse_code",
                fix="raise max_iterations or the tolerance",
            )
        return self


def soft_threshold(v: Tensor, threshold: float, *, nonnegative: bool = False) -> Tensor:
    """The proximal map of threshold ||z||_1: sign(v) max(|v| - threshold, 0), or max(v - threshold, 0) for z >= 0."""
    if nonnegative:
        return (v - threshold).clamp_min(0)
    return v - v.clamp(-threshold, threshold)


def lipschitz_bound(atoms: Tensor, tolerance: float = LIPSCHITZ_TOLERANCE) -> float:
    """L with ||D||_2^2 <= L <= (1 + tolerance) ||D||_2^2, the Lipschitz constant of the gradient.

    A power iteration from one random vector approaches the largest eigenvalue from below, and a step of 1/L from
    below can diverge. Squaring the smaller Gram matrix M (m x m) is the same iteration from all vectors at once, and
    it brackets: trace(M^p) / m <= lambda_max^p <= trace(M^p). p = 2^j is chosen so that m^(1/p) <= 1 + tolerance.

    Args:
        atoms: [n, d].
        tolerance: Relative width of the bracket, in (0, 1].

    Raises:
        UserError: The tolerance is out of range.
        DataError: An atom holds NaN or infinity, or is too large to square.
    """
    if not 0 < tolerance <= 1:
        raise UserError(f"tolerance {tolerance} is not in (0, 1]", where="tolerance", fix="use 0.01")
    D = _check_atoms(atoms)
    gram = D.T @ D if D.shape[1] <= D.shape[0] else D @ D.T
    power, log_trace = 1, 0.0  # trace(M^power) = exp(log_trace) trace(gram), where gram is rescaled to trace 1
    while True:
        trace = float(gram.trace())
        if trace == 0:
            return 0.0
        if not math.isfinite(trace):
            raise DataError("the atoms are too large to square in float64", where="atoms", fix="rescale them")
        log_trace += math.log(trace)
        if math.log(len(gram)) / power <= math.log1p(tolerance / 2):
            # The other half of the tolerance is far more than rounding can take from the trace.
            return math.exp(log_trace / power) * (1 + 1e-9)
        gram = gram / trace
        gram = gram @ gram
        power, log_trace = 2 * power, 2 * log_trace


def objective(x: Tensor, atoms: Tensor, codes: Tensor, penalty: float, *, convention: Convention = "half") -> Tensor:
    """F of any codes, float64 [N]: of an encoder's, say (see the module docstring).

    Args:
        x: Targets [N, d]; an SAE's problem has x - b_dec.
        atoms: [n, d].
        codes: z, [N, n].
        penalty: lambda.
        convention: Whether the squared error is halved.

    Raises:
        UserError: Shapes do not fit or lambda is not positive.
        DataError: NaN or infinity.
    """
    X, D = check_problem(x, atoms)
    _check_penalty(penalty)
    z = _check_codes(codes, X, D)
    return _factor(convention) * _objective(X, D, z, penalty / _factor(convention))


@torch.no_grad()
def sparse_code(
    x: Tensor,
    atoms: Tensor,
    penalty: float,
    *,
    method: Method = "fista",
    nonnegative: bool = True,
    convention: Convention = "half",
    tolerance: float = 1e-6,
    max_iterations: int = 5000,
    start: Tensor | None = None,
    lipschitz: float | None = None,
    keep_history: bool = False,
) -> Solution:
    """Minimise F for every token (see the module docstring).

    Args:
        x: Targets [N, d]; an SAE's problem has x - b_dec.
        atoms: Dictionary [n, d], one row per atom.
        penalty: lambda > 0, in units of the convention.
        method: `fista` or `ista`.
        nonnegative: Restrict to z >= 0, the encoder's problem; false gives the signed form.
        convention: `half` or `full`.
        tolerance: Stop a token when its gap is at most this share of F(0); 0 runs to `max_iterations` unless the gap
            rounds to 0.
        max_iterations: The most steps; tokens that need more are returned with `converged` false.
        start: z_0 [N, n]; zeros if not given.
        lipschitz: L if it is known (`lipschitz_bound`), which saves computing it; it must not be too small.
        keep_history: Also return F at every step.

    Raises:
        UserError: Shapes do not fit, or an argument is out of range.
        DataError: x, the atoms or the start hold NaN or infinity.
    """
    X, D = check_problem(x, atoms)
    _check_penalty(penalty)
    if method not in ("ista", "fista"):
        raise UserError(f"unknown method '{method}'", where="method", fix="use fista or ista")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"tolerance {tolerance} is not a number >= 0", where="tolerance", fix="use 1e-6")
    if type(max_iterations) is not int or max_iterations < 0:
        raise UserError(
            f"max_iterations {max_iterations!r} is not a whole number >= 0", where="max_iterations", fix="use 5000"
        )
    factor = _factor(convention)
    lipschitz = lipschitz_bound(D) if lipschitz is None else lipschitz
    if not (math.isfinite(lipschitz) and lipschitz > 0):
        raise UserError(
            f"lipschitz constant {lipschitz} is not a positive number",
            where="atoms, lipschitz",
            fix="some atom must differ from zero; leave out `lipschitz` to have it computed",
        )
    problem = _Problem(D, penalty / factor, nonnegative, lipschitz)
    z = X.new_zeros(len(X), len(D)) if start is None else _check_codes(start, X, D)
    if nonnegative and bool((z < 0).any()):
        raise UserError("the start has negative codes", where="start", fix="clamp it, or solve the signed form")
    best = 0.5 * X.square().sum(1) * tolerance

    out = Solution(
        codes=z.clone(),
        objective=X.new_zeros(len(X)),
        gap=X.new_zeros(len(X)),
        iterations=torch.zeros(len(X), dtype=torch.int64, device=X.device),
        converged=torch.zeros(len(X), dtype=torch.bool, device=X.device),
        lipschitz=problem.lipschitz,
    )
    history = []
    # Tokens that are done leave the batch: `rows` are those still running.
    rows = torch.arange(len(X), device=X.device)
    correlation, value, gap = problem.evaluate(X, z)
    z_old, correlation_old, t = z, correlation, 1.0
    for step in range(max_iterations + 1):
        done = gap <= best[rows]
        out.codes[rows], out.objective[rows], out.gap[rows] = z, factor * value, factor * gap
        out.iterations[rows], out.converged[rows] = step, done
        if keep_history:
            history.append(out.objective.clone())
        if step == max_iterations or bool(done.all()):
            break
        if bool(done.any()):
            left = ~done
            rows, z, z_old, correlation, correlation_old = (
                part[left] for part in (rows, z, z_old, correlation, correlation_old)
            )
        momentum = 0.0
        if method == "fista" and step > 0:
            t_new = (1 + math.sqrt(1 + 4 * t * t)) / 2
            momentum, t = (t - 1) / t_new, t_new
        # D^T (x - D y) is affine in y, so that of the extrapolated point needs no further product.
        y = z + momentum * (z - z_old)
        at_y = correlation + momentum * (correlation - correlation_old)
        z_old, correlation_old = z, correlation
        z = soft_threshold(y + at_y / problem.lipschitz, problem.penalty / problem.lipschitz, nonnegative=nonnegative)
        correlation, value, gap = problem.evaluate(X[rows], z)
    if keep_history:
        return Solution(**{**vars(out), "history": torch.stack(history)})
    return out


@dataclass(frozen=True)
class _Problem:
    """F in the convention `half`."""

    atoms: Tensor
    penalty: float
    nonnegative: bool
    lipschitz: float

    def evaluate(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D^T r [N, n], F(z) [N] and the duality gap [N]."""
        residual = x - z @ self.atoms
        correlation = residual @ self.atoms.T
        square = residual.square().sum(1)
        value = 0.5 * square + self.penalty * z.abs().sum(1)
        highest = (correlation if self.nonnegative else correlation.abs()).amax(1).clamp_min(0)
        along = (x * residual).sum(1)
        # A zero residual has w = 0 whatever s is; no positive correlation leaves s unbounded.
        scale = torch.where(square > 0, along / square.clamp_min(torch.finfo(x.dtype).tiny), 0.0).clamp_min(0)
        bound = torch.where(highest > 0, self.penalty / highest.clamp_min(torch.finfo(x.dtype).tiny), math.inf)
        scale = torch.minimum(scale, bound)
        return correlation, value, (value - scale * along + 0.5 * scale.square() * square).clamp_min(0)


def _objective(x: Tensor, atoms: Tensor, z: Tensor, penalty: float) -> Tensor:
    return 0.5 * (x - z @ atoms).square().sum(1) + penalty * z.abs().sum(1)


def _factor(convention: str) -> float:
    if convention not in ("half", "full"):
        raise UserError(f"unknown convention '{convention}'", where="convention", fix="use half or full")
    return 1.0 if convention == "half" else 2.0


def _check_atoms(atoms: Tensor) -> Tensor:
    if atoms.ndim != 2 or 0 in atoms.shape:
        raise UserError(f"atoms of shape {tuple(atoms.shape)} are not [n, d]", where="atoms", fix="pass sae.atoms")
    if not bool(torch.isfinite(atoms).all()):
        raise DataError("the atoms hold NaN or infinity", where="atoms", fix="restore the dictionary")
    return atoms.detach().double()


def check_problem(x: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor]:
    """x [N, d] and the atoms [n, d] in float64, or what is wrong with them.

    Raises:
        UserError: Shapes do not fit.
        DataError: NaN, infinity, or a target too large to square.
    """
    D = _check_atoms(atoms)
    if x.ndim != 2 or x.shape[1] != D.shape[1]:
        raise UserError(
            f"targets of shape {tuple(x.shape)}; the atoms have width {D.shape[1]}",
            where="x",
            fix="pass [N, d] of the same d as the atoms",
        )
    X = x.detach().double()
    bad = ~torch.isfinite(X.square().sum(1))
    if bool(bad.any()):
        raise DataError(
            f"{int(bad.sum())} of {len(X)} targets hold NaN or infinity, or are too large to square",
            where=f"row {int(bad.nonzero()[0])}",
            fix="leave these tokens out",
        )
    return X, D


def _check_penalty(penalty: float) -> None:
    if not (math.isfinite(penalty) and penalty > 0):
        raise UserError(
            f"penalty {penalty} is not a positive number", where="penalty", fix="without a penalty use least squares"
        )


def _check_codes(codes: Tensor, x: Tensor, atoms: Tensor) -> Tensor:
    if codes.shape != (len(x), len(atoms)):
        raise UserError(
            f"codes of shape {tuple(codes.shape)}; {len(x)} targets and {len(atoms)} atoms need {(len(x), len(atoms))}",
            where="codes",
            fix="pass one code per target",
        )
    if not bool(torch.isfinite(codes).all()):
        raise DataError("the codes hold NaN or infinity", where="codes", fix="leave these tokens out")
    return codes.detach().double()
