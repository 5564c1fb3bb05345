"""How well a code of a given size reconstructs, how sparse codes are, and how a dictionary's directions lie.

Budgets. Of each residue's code the b latents with the largest contributions (value times the norm of the atom) are
kept as they are, without a refit, and decoded. `leading` keeps the first b components for every residue instead, which
is what truncating PCA means. Sums are in fp64 over whole sequences, so that they can be added up by protein.

Hoyer sparsity of a code of n contributions c (Hoyer 2004, "Non-negative matrix factorization with sparseness
constraints"): (sqrt(n) - ||c||_1 / ||c||_2) / (sqrt(n) - 1), 1 for one active latent (or none), 0 for all alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.components import PCA, Components
from plmsae.saes.neurons import Neurons

DIRECTIONS_AT_ONCE = 1024
# A code with more columns than this share of the dictionary is decoded as a dense one.
DENSE_SHARE = 0.25


@torch.no_grad()
def squared_errors(
    sae: SparseAutoencoder, x: Tensor, indices: Tensor, values: Tensor, budgets: Sequence[int]
) -> Tensor:
    """||x - x^||^2 with at most b latents per row, for every budget b.

    Args:
        sae: Any architecture.
        x: Hidden states [R, d].
        indices: Their code, as `encode_sparse` returns it.
        values: See `indices`.
        budgets: Numbers of latents kept.

    Returns:
        float64 [R, len(budgets)].
    """
    contributions = values * torch.linalg.vector_norm(sae.atoms, dim=1)[indices]
    if isinstance(sae, PCA | Neurons):
        squares = contributions.double().square().sort(dim=1, descending=True).values
        return _tails(sae, x, squares, budgets)
    order = contributions.argsort(dim=1, descending=True)
    indices, values = indices.gather(1, order), values.gather(1, order)
    dense = indices.shape[1] > DENSE_SHARE * sae.config.dictionary_size
    most, errors = indices.shape[1], {}
    for budget in {min(budget, most) for budget in budgets}:
        kept = slice(0, budget)
        if dense:
            z = values.new_zeros(len(x), sae.config.dictionary_size).scatter(1, indices[:, kept], values[:, kept])
            x_hat = sae.decode(z, x)
        else:
            x_hat = sae.decode_sparse(indices[:, kept], values[:, kept], x)
        errors[budget] = (x.double() - x_hat.double()).square().sum(1)
    return torch.stack([errors[min(budget, most)] for budget in budgets], dim=1)


@torch.no_grad()
def leading_errors(sae: PCA, x: Tensor, indices: Tensor, values: Tensor, budgets: Sequence[int]) -> Tensor:
    """||x - x^||^2 with the first b components for every row, float64 [R, len(budgets)]; the code has them all."""
    places = (indices % sae.num_components).argsort(dim=1)
    return _tails(sae, x, values.gather(1, places).double().square(), budgets)


def _tails(sae: SparseAutoencoder, x: Tensor, squares: Tensor, budgets: Sequence[int]) -> Tensor:
    """Errors on orthonormal directions: what the kept scores leave, [R, len(budgets)]."""
    total = (x.double() - sae.b_dec.double()).square().sum(1, keepdim=True)
    outside = (total - squares.sum(1, keepdim=True)).clamp_min(0)
    # From the smallest up, so that small remainders are not differences of large sums.
    tails = torch.cat([squares.flip(1).cumsum(1).flip(1), torch.zeros_like(total)], dim=1)
    rounding = torch.finfo(x.dtype).eps * total * squares.shape[1]
    outside = torch.where(outside > rounding, outside, 0.0)
    return outside + tails[:, [min(budget, squares.shape[1]) for budget in budgets]]


@torch.no_grad()
def sparsity(sae: SparseAutoencoder, indices: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Active latents and Hoyer sparsity of every row of a code, both float64 [R]."""
    contributions = values.double() * torch.linalg.vector_norm(sae.atoms, dim=1).double()[indices]
    active = (values > 0).sum(1).double()
    root = math.sqrt(sae.config.dictionary_size)
    l1, l2 = contributions.sum(1), torch.linalg.vector_norm(contributions, dim=1)
    ratio = torch.where(l2 > 0, l1 / l2.clamp_min(torch.finfo(torch.float64).tiny), 1.0)
    hoyer = (root - ratio) / (root - 1) if root > 1 else torch.ones_like(ratio)
    return active, hoyer


@dataclass(frozen=True)
class Basis:
    """How the directions of a dictionary lie to each other.

    Attributes:
        num_directions: Directions, counting a unit and its negative once; atoms of length 0 are none.
        mean_cosine: Mean |cosine| over all pairs; about sqrt(2 / (pi d)) for directions drawn at random.
        max_cosine: Largest |cosine| (mutual coherence); 0 for an orthogonal basis.
    """

    num_directions: int
    mean_cosine: float
    max_cosine: float


@torch.no_grad()
def basis(sae: SparseAutoencoder) -> Basis:
    """The angles between the directions of a dictionary, all pairs."""
    atoms = sae.atoms
    if isinstance(sae, Components | Neurons):
        atoms = atoms[: len(atoms) // 2]  # the other half is the same directions with the sign turned
    norms = torch.linalg.vector_norm(atoms.double(), dim=1, keepdim=True)
    directions = (atoms.double() / norms.clamp_min(1e-300))[norms[:, 0] > 0]
    n = len(directions)
    if n < 2:
        return Basis(n, 0.0, 0.0)
    total, highest = 0.0, 0.0
    for start in range(0, n, DIRECTIONS_AT_ONCE):
        cosines = (directions[start : start + DIRECTIONS_AT_ONCE] @ directions.T).abs()
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = 0.0
        total += float(cosines.sum())
        highest = max(highest, float(cosines.max()))
    return Basis(n, total / (n * (n - 1)), min(highest, 1.0))
