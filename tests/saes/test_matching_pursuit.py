import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import orthogonal_mp
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.constraints import unit_rows_
from plmsae.saes.matching_pursuit import Support, orthogonal_matching_pursuit, refit, support_of


def problem(num_tokens: int = 20, d: int = 10, n: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n, d, generator=generator, dtype=torch.float64)
    unit_rows_(atoms)
    return torch.randn(num_tokens, d, generator=generator, dtype=torch.float64), atoms


def errors(x: Tensor, atoms: Tensor, codes: Tensor) -> Tensor:
    return (x - codes @ atoms).square().sum(1)


def test_the_signed_pursuit_is_that_of_scikit_learn() -> None:
    x, atoms = problem()
    for size in (1, 3, 7):
        support = orthogonal_matching_pursuit(x, atoms, torch.full((20,), size), nonnegative=False)
        theirs = orthogonal_mp(atoms.numpy().T, x.numpy().T, n_nonzero_coefs=size)
        np.testing.assert_allclose(refit(x, atoms, support).numpy(), theirs.T, atol=1e-10)


def test_a_sparse_combination_of_nearly_orthogonal_atoms_is_recovered() -> None:
    _, atoms = problem(d=200, n=300)
    codes = torch.zeros(5, 300, dtype=torch.float64)
    for row in range(5):
        codes[row, torch.randperm(300, generator=torch.Generator().manual_seed(row))[: row + 1]] = 1.0 + row
    x = codes @ atoms
    support = orthogonal_matching_pursuit(x, atoms, torch.full((5,), 9))
    assert support.sizes.tolist() == [1, 2, 3, 4, 5]  # nothing is left to explain after that
    torch.testing.assert_close(refit(x, atoms, support), codes, atol=1e-9, rtol=0)


@given(seed=st.integers(0, 2**16), size=st.integers(0, 8), nonnegative=st.booleans())
@settings(deadline=None, max_examples=25)
def test_least_squares_is_a_projection_and_more_atoms_never_hurt(seed: int, size: int, nonnegative: bool) -> None:
    x, atoms = problem(8, 6, 12, seed)
    sizes = torch.full((8,), size)
    support = orthogonal_matching_pursuit(x, atoms, sizes, nonnegative=nonnegative)
    assert bool((support.sizes <= sizes).all())
    codes = refit(x, atoms, support)
    assert bool(((codes != 0).sum(1) <= support.sizes).all())
    residual = x - codes @ atoms
    picked = torch.zeros(8, 12, dtype=torch.bool)
    for row in range(8):
        indices = support.indices[row][support.used[row]].tolist()
        assert len(set(indices)) == len(indices)
        picked[row, indices] = True
    assert float((residual @ atoms.T)[picked].abs().sum()) < 1e-8  # orthogonal to every atom of the support
    more = refit(x, atoms, orthogonal_matching_pursuit(x, atoms, sizes + 1, nonnegative=nonnegative))
    assert bool((errors(x, atoms, more) <= errors(x, atoms, codes) + 1e-10).all())


def test_tokens_have_their_own_sizes_and_do_not_depend_on_the_batch() -> None:
    x, atoms = problem(600)
    sizes = torch.arange(600) % 9
    together = orthogonal_matching_pursuit(x, atoms, sizes)
    assert torch.equal(together.sizes, sizes)
    for row in (0, 8, 300, 599):
        alone = orthogonal_matching_pursuit(x[row : row + 1], atoms, sizes[row : row + 1])
        assert alone.indices[0][alone.used[0]].tolist() == together.indices[row][together.used[row]].tolist()
    none = orthogonal_matching_pursuit(x[:0], atoms, sizes[:0])
    assert refit(x[:0], atoms, none).shape == (0, 30)


def test_the_nonnegative_pursuit_takes_no_atom_that_points_away() -> None:
    atoms = torch.eye(3, dtype=torch.float64)
    x = torch.tensor([[1.0, -5.0, 0.5]], dtype=torch.float64)
    two = torch.tensor([2])
    assert orthogonal_matching_pursuit(x, atoms, two).indices.tolist() == [[0, 2]]
    assert orthogonal_matching_pursuit(x, atoms, two, nonnegative=False).indices.tolist() == [[1, 0]]
    assert orthogonal_matching_pursuit(-x.abs(), atoms, two).sizes.tolist() == [0]


def test_dependent_atoms_zero_atoms_and_scaled_atoms() -> None:
    x, atoms = problem()
    scales = torch.rand(30, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 100 + 1e-3
    sizes = torch.full((20,), 4)
    plain, scaled = (orthogonal_matching_pursuit(x, part, sizes) for part in (atoms, scales * atoms))
    assert torch.equal(plain.indices, scaled.indices)
    torch.testing.assert_close(refit(x, scales * atoms, scaled) * scales.T, refit(x, atoms, plain))
    twins = torch.cat([atoms[:1], atoms[:1], torch.zeros(1, 10, dtype=torch.float64)])
    support = orthogonal_matching_pursuit(x, twins, torch.full((20,), 3), nonnegative=False)
    assert support.sizes.tolist() == [1] * 20
    both = Support(torch.tensor([[0, 1]] * 20), torch.ones(20, 2, dtype=torch.bool))
    codes = refit(x, twins, both)
    torch.testing.assert_close(codes[:, 0], codes[:, 1])  # the shortest of equal solutions
    torch.testing.assert_close(errors(x, twins, codes), errors(x, twins, refit(x, twins, support)))


def test_the_support_of_a_code() -> None:
    codes = torch.tensor([[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0]])
    support = support_of(codes)
    assert support.sizes.tolist() == [2, 0, 1]
    assert [support.indices[row][support.used[row]].tolist() for row in range(3)] == [[1, 3], [], [0]]
    assert support_of(codes[1:2]).indices.shape == (1, 0)


def test_bad_arguments_are_refused() -> None:
    x, atoms = problem()
    with pytest.raises(UserError, match=r"sizes must lie in 0\.\.30"):
        orthogonal_matching_pursuit(x, atoms, torch.full((20,), 31))
    with pytest.raises(UserError, match="sizes of shape"):
        orthogonal_matching_pursuit(x, atoms, torch.full((19,), 3))
    with pytest.raises(UserError, match="atoms have width 10"):
        orthogonal_matching_pursuit(x[:, :4], atoms, torch.full((20,), 3))
    with pytest.raises(UserError, match="1 supports for 20 targets"):
        refit(x, atoms, support_of(torch.ones(1, 30)))
    x[5, 5] = float("inf")
    with pytest.raises(DataError, match="1 of 20 targets"):
        orthogonal_matching_pursuit(x, atoms, torch.full((20,), 3))
