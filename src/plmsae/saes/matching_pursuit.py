"""Orthogonal matching pursuit: a code with a given number of atoms, token by token; and least squares on a support.

Finding the best support of s atoms is a hard combinatorial problem; OMP (Pati, Rezaiifar & Krishnaprasad 1993) takes
greedily the atom that correlates most with what is left, and projects onto all atoms taken so far. Float64 throughout.
Shapes: N tokens, d = d_model, n atoms, S the largest support asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.saes.sparse_coding import check_problem

# An atom whose part outside the span of the atoms taken so far is smaller than this adds nothing but rounding errors.
DEPENDENT = 1e-7
TOKENS_AT_ONCE = 256


@dataclass(frozen=True)
class Support:
    """Some atoms per token.

    Attributes:
        indices: int64 [N, S]; entries that are not `used` mean nothing.
        used: bool [N, S].
    """

    indices: Tensor
    used: Tensor

    @property
    def sizes(self) -> Tensor:
        """Number of atoms of each token, int64 [N]."""
        return self.used.sum(1)


def support_of(codes: Tensor) -> Support:
    """The positions of the non-zero codes [N, n]."""
    active = codes != 0
    most = int(active.sum(1).max()) if len(codes) else 0
    # Sorting the flags brings the active positions, in order, to the front.
    indices = active.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return Support(indices, active.gather(1, indices))


@torch.no_grad()
def orthogonal_matching_pursuit(x: Tensor, atoms: Tensor, sizes: Tensor, *, nonnegative: bool = True) -> Support:
    """Supports of at most the given sizes.

    Args:
        x: Targets [N, d]; an SAE's problem has x - b_dec.
        atoms: [n, d]; their norms do not matter.
        sizes: int64 [N], atoms allowed per token.
        nonnegative: Take only atoms that correlate positively with the residual, as an encoder does.

    Returns:
        Supports; smaller than asked for where the target is reproduced or no further atom correlates.

    Raises:
        UserError: Shapes do not fit, or a size is negative or above n.
        DataError: x or the atoms hold NaN or infinity.
    """
    X, D = check_problem(x, atoms)
    if sizes.shape != (len(X),) or sizes.dtype != torch.int64:
        raise UserError(f"sizes of shape {tuple(sizes.shape)}", where="sizes", fix="pass one whole number per token")
    if len(sizes) and (int(sizes.min()) < 0 or int(sizes.max()) > len(D)):
        raise UserError(f"sizes must lie in 0..{len(D)}", where="sizes", fix="ask for no more atoms than there are")
    norms = torch.linalg.vector_norm(D, dim=1, keepdim=True)
    D = torch.where(norms > 0, D / norms.clamp_min(torch.finfo(D.dtype).tiny), 0.0)
    most = int(sizes.max()) if len(sizes) else 0
    parts = [
        _pursue(rows, D, allowed, most, nonnegative)
        for rows, allowed in zip(torch.split(X, TOKENS_AT_ONCE), torch.split(sizes, TOKENS_AT_ONCE))
    ]
    if not parts:
        empty = torch.zeros(0, 0, dtype=torch.int64, device=X.device)
        return Support(empty, empty.bool())
    return Support(torch.cat([part.indices for part in parts]), torch.cat([part.used for part in parts]))


def _pursue(x: Tensor, atoms: Tensor, sizes: Tensor, most: int, nonnegative: bool) -> Support:
    """OMP of a block of tokens over unit atoms (a zero row is never taken)."""
    tokens = torch.arange(len(x), device=x.device)
    indices = torch.zeros(len(x), most, dtype=torch.int64, device=x.device)
    used = torch.zeros(len(x), most, dtype=torch.bool, device=x.device)
    basis = x.new_zeros(len(x), most, x.shape[1])  # orthonormal rows that span the atoms taken
    barred = torch.zeros(len(x), len(atoms), dtype=torch.bool, device=x.device)
    residual = x
    enough = DEPENDENT * torch.linalg.vector_norm(x, dim=1)
    for step in range(most):
        correlation = residual @ atoms.T
        score = (correlation if nonnegative else correlation.abs()).masked_fill(barred, -torch.inf)
        best, atom = score.max(1)
        taken = (best > enough) & (step < sizes)
        barred[tokens, atom] = True
        direction = atoms[atom]
        for _ in range(2):  # once is not orthogonal in floating point, twice is (Giraud & Langou 2003)
            along = torch.einsum("nsd,nd->ns", basis, direction)
            direction = direction - torch.einsum("ns,nsd->nd", along, basis)
        length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        taken &= length[:, 0] > DEPENDENT
        direction = torch.where(taken[:, None], direction / length.clamp_min(DEPENDENT), 0.0)
        basis[:, step] = direction
        residual = residual - (residual * direction).sum(1, keepdim=True) * direction
        indices[:, step], used[:, step] = atom, taken
    return Support(indices, used)


@torch.no_grad()
def refit(x: Tensor, atoms: Tensor, support: Support) -> Tensor:
    """Least squares on each token's atoms: the code on that support with the smallest ||x - D z||.

    Coefficients may have either sign. Among equal codes (dependent atoms) the shortest is taken.

    Args:
        x: Targets [N, d].
        atoms: [n, d].
        support: Atoms of each token.

    Returns:
        Codes, float64 [N, n].

    Raises:
        UserError: Shapes do not fit.
        DataError: x or the atoms hold NaN or infinity.
    """
    X, D = check_problem(x, atoms)
    if len(support.indices) != len(X):
        raise UserError(f"{len(support.indices)} supports for {len(X)} targets", where="support", fix="pass one each")
    codes = X.new_zeros(len(X), len(D))
    if support.indices.shape[1] == 0:
        return codes
    for start in range(0, len(X), TOKENS_AT_ONCE):
        rows = slice(start, start + TOKENS_AT_ONCE)
        indices, used = support.indices[rows], support.used[rows]
        # An unused column is zero, so that the shortest solution leaves its coefficient zero. `gelsd` is CPU only.
        columns = (D[indices] * used[..., None]).transpose(1, 2).cpu()
        found = torch.linalg.lstsq(columns, X[rows].cpu()[..., None], rcond=1e-12, driver="gelsd").solution[..., 0]
        # index -> code by addition: unused entries repeat an index, with the value zero.
        codes[rows] = codes[rows].scatter_add(1, indices, found.to(X.device) * used)
    return codes
