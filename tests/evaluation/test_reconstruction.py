import numpy as np
import pytest
import torch
from torch import Tensor

from plmsae.evaluation.baselines import fit_ica, fit_pca, random_dictionary
from plmsae.evaluation.reconstruction import basis, leading_errors, sparsity, squared_errors
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from tests.saes.conftest import config_of, generic_sae

LIKE = config_of("topk")
BUDGETS = (1, 2, 5, 12)


def rows(num_rows: int = 300) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(12, 12, generator=generator)
    return torch.randn(num_rows, 12, generator=generator) @ mixing + 4.0


def by_hand(sae: SparseAutoencoder, x: Tensor, budget: int) -> np.ndarray:
    """Row by row: keep the largest contributions of the dense code, decode with the atoms."""
    z, atoms = sae.encode(x).double().numpy(), sae.atoms.double().numpy()
    contributions = z * np.linalg.norm(atoms, axis=1)
    kept = np.zeros_like(z)
    for row, order in enumerate(np.argsort(-contributions, axis=1, kind="stable")[:, :budget]):
        kept[row, order] = z[row, order]
    x_hat = kept @ atoms + sae.b_dec.double().numpy()
    return ((x.double().numpy() - x_hat) ** 2).sum(1)


def methods() -> dict[str, SparseAutoencoder]:
    x = rows()
    neurons = build(LIKE.replace(architecture="neurons", dictionary_size=24, k=12))
    neurons.initialise(torch.Generator().manual_seed(0), center=x.mean(0))
    return {
        "sae": generic_sae("topk").requires_grad_(False),
        "neurons": neurons,
        "pca": fit_pca([x], LIKE, k=12),
        "few": fit_pca([x], LIKE, num_components=6, k=6),
        "ica": fit_ica(x, LIKE, k=12),
        "random": random_dictionary(LIKE, x.mean(0)),
    }


@pytest.mark.parametrize("name", list(methods()))
def test_errors_at_every_budget_by_hand(name: str) -> None:
    sae, x = methods()[name], rows()
    found = squared_errors(sae, x, *sae.encode_sparse(x), BUDGETS)
    assert found.shape == (300, 4)
    assert found.dtype == torch.float64
    for place, budget in enumerate(BUDGETS):
        np.testing.assert_allclose(found[:, place].numpy(), by_hand(sae, x, budget), rtol=2e-3, atol=2e-3)
    whole = (x.double() - sae(x).double()).square().sum(1)
    np.testing.assert_allclose(found[:, -1].numpy(), whole.numpy(), rtol=2e-3, atol=2e-3)


def test_leading_components_leave_the_variance_of_the_others() -> None:
    """1 - cumulative explained variance, which numpy gets from singular values."""
    x = rows()
    pca = fit_pca([x], LIKE, k=12)
    code = pca.encode_sparse(x)
    found = leading_errors(pca, x, *code, BUDGETS).sum(0).numpy()
    centred = x.double().numpy() - x.double().numpy().mean(0)
    squares = np.linalg.svd(centred, compute_uv=False) ** 2
    np.testing.assert_allclose(found, [squares[budget:].sum() for budget in BUDGETS], rtol=1e-4, atol=1e-3)
    largest = squared_errors(pca, x, *code, BUDGETS).sum(0).numpy()
    assert (largest <= found + 1e-9).all(), "the components that suit a residue best are no worse than the first"
    assert found[-1] == 0.0


def test_sparsity_by_hand() -> None:
    sae = generic_sae("topk", dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec[:3] = torch.eye(12, dtype=torch.float64)[:3] * torch.tensor([[1.0], [2.0], [1.0]])
    indices = torch.tensor([[0, 1, 2]] * 4)
    values = torch.tensor([[2.0, 0, 0], [2, 1, 2], [3, 2, 0], [0, 0, 0]], dtype=torch.float64)
    active, hoyer = sparsity(sae, indices, values)
    assert active.tolist() == [1, 3, 2, 0]
    root = np.sqrt(40)
    # Contributions are (2), (2, 2, 2), (3, 4) and none: ratios of norms 1, sqrt(3), 7 / 5 and 1.
    wanted = [(root - ratio) / (root - 1) for ratio in (1, np.sqrt(3), 1.4, 1)]
    assert hoyer.tolist() == pytest.approx(wanted)


def test_angles_by_hand() -> None:
    sae = generic_sae("topk", dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_dec[0, 0], sae.W_dec[1, 1] = 5.0, 1.0
        sae.W_dec[2, :2] = torch.tensor([-0.6, -0.8])
    found = basis(sae)
    assert found.num_directions == 3
    assert (found.mean_cosine, found.max_cosine) == pytest.approx(((0 + 0.6 + 0.8) / 3, 0.8))


def test_an_orthogonal_basis_has_no_angles_and_counts_each_direction_once() -> None:
    for name in ("pca", "neurons"):
        found = basis(methods()[name])
        assert found.num_directions == 12
        assert found.max_cosine == pytest.approx(0.0, abs=1e-6)
    assert basis(methods()["random"]).num_directions == 40
    ica = methods()["ica"]
    directions = ica.atoms[:12].double().numpy()
    cosines = np.abs(directions @ directions.T)[~np.eye(12, dtype=bool)]
    assert (basis(ica).mean_cosine, basis(ica).max_cosine) == pytest.approx((cosines.mean(), cosines.max()), rel=1e-5)
