import dataclasses
import math

import pytest
import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.evaluation.amortisation import AmortisationGap, amortisation_gap
from plmsae.saes import SaeConfig, architectures, build
from plmsae.saes.base import SparseAutoencoder
from tests.saes.conftest import generic_sae


def topk(atoms: Tensor, k: int, b_enc: float = 0.0) -> SparseAutoencoder:
    """A TopK SAE with a tied encoder and no decoder bias."""
    config = SaeConfig(
        architecture="topk", d_model=atoms.shape[1], dictionary_size=len(atoms), k=k, plm="esm_small",
        plm_revision="sha256:00", layer=4, hook="residual", normaliser={"kind": "rms", "scale": 1.0, "folded": True},
    )  # fmt: skip
    sae = build(config).double()
    with torch.no_grad():
        sae.load_state_dict(
            {**sae.state_dict(), "W_dec": atoms, "W_enc": atoms, "b_enc": torch.full((len(atoms),), b_enc)}
        )
    return sae


def tokens(num_rows: int = 80, d: int = 12, seed: int = 5) -> Tensor:
    return torch.randn(num_rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_number_by_hand() -> None:
    """Two tokens, three unit atoms in the plane: (1, 0), (0, 1), (0.6, 0.8); TopK with k = 1; lambda = 1."""
    atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    x = torch.tensor([[3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    sae = topk(atoms, k=1, b_enc=-0.5)
    found = amortisation_gap(sae, x, penalty=1.0, tolerance=1e-12)
    # Encoder: 2.5 on atom 0; 4.5 on atom 2. Optimum: 2 on atom 0; 4 on atom 2 (soft thresholds, checked by the KKT
    # conditions: the residuals (1, 0) and (0.6, 0.8) correlate with no atom above 1).
    assert found.objective_encoder == pytest.approx(((0.125 + 2.5) + (0.125 + 4.5)) / 2)
    assert found.objective_optimum == pytest.approx(((0.5 + 2.0) + (0.5 + 4.0)) / 2)
    assert found.objective_zero == pytest.approx((4.5 + 12.5) / 2)
    assert found.excess == pytest.approx(0.25 / 7.0)
    assert found.attained == pytest.approx((8.5 - 3.625) / (8.5 - 3.5))
    assert found.l0_encoder == found.l0_optimum == found.l0_pursuit == 1.0
    # The mean is (3, 2), so the variation is 4 + 4.
    assert found.fvu_encoder == pytest.approx((0.25 + 0.25) / 8)
    assert found.fvu_optimum == pytest.approx((1.0 + 1.0) / 8, rel=1e-5)
    for value in (found.fvu_encoder_refit, found.fvu_optimum_refit, found.fvu_pursuit, found.fvu_gap):
        assert value == pytest.approx(0.0, abs=1e-12)
    assert found.negative_encoder == found.negative_pursuit == 0.0
    assert (found.num_tokens, found.num_unconverged, found.penalty) == (2, 0, 1.0)


def test_a_wrong_choice_of_atoms_costs_at_equal_l0() -> None:
    atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    sae = topk(atoms, k=1)
    with torch.no_grad():
        sae.W_enc.copy_(atoms.flip(0))  # type: ignore[operator, union-attr]
    found = amortisation_gap(sae, x, penalty=0.5)
    # The encoder keeps the atom of the smaller coordinate: 9 of error per token remain, 1 for the pursuit; the
    # variation about (2, 2) is 2 per token.
    assert found.fvu_encoder_refit == pytest.approx(9 / 2)
    assert found.fvu_pursuit == pytest.approx(1 / 2)
    assert found.fvu_gap == pytest.approx(4.0)


def test_an_encoder_that_solves_the_problem_has_no_gap() -> None:
    """On an orthonormal dictionary ReLU(D^T x - lambda) is the optimum."""
    basis = torch.linalg.qr(tokens(12)).Q
    found = amortisation_gap(topk(basis, k=12, b_enc=-0.4), tokens(), penalty=0.4, tolerance=1e-10)
    assert found.excess == pytest.approx(0.0, abs=1e-9)
    assert found.attained == pytest.approx(1.0, abs=1e-9)
    assert found.fvu_gap == pytest.approx(0.0, abs=1e-9)
    assert found.l0_optimum == pytest.approx(found.l0_encoder)
    # ... and the penalty at which the optimum is as sparse as this encoder is the one it was made with.
    matched = amortisation_gap(topk(basis, k=12, b_enc=-0.4), tokens(), tolerance=1e-10)
    assert matched.penalty == pytest.approx(0.4, rel=0.05)
    assert matched.l0_optimum == pytest.approx(matched.l0_encoder, rel=0.01)


@pytest.mark.parametrize("architecture", architectures())
def test_the_numbers_keep_their_order_for_every_architecture(architecture: str) -> None:
    sae, x = generic_sae(architecture), tokens(40).float()
    found = amortisation_gap(sae, x, penalty=0.3, tolerance=1e-6)
    assert found.num_unconverged == 0
    assert 0 <= found.certificate <= 1e-6 * found.objective_zero
    assert found.objective_optimum <= min(found.objective_encoder, found.objective_zero) + 1e-9
    assert found.excess >= -1e-9
    assert found.attained <= 1 + 1e-9
    assert found.fvu_encoder_refit <= found.fvu_encoder + 1e-9
    assert found.fvu_optimum_refit <= found.fvu_optimum + 1e-9
    assert found.l0_pursuit <= found.l0_encoder
    assert all(math.isfinite(value) for value in found.metrics().values())
    squared = (x.double() - sae(x).double()).square().sum()
    assert found.fvu_encoder == pytest.approx(float(squared / (x - x.mean(0)).double().square().sum()), rel=1e-5)


def test_the_default_penalty_makes_the_optimum_as_sparse_as_the_encoder() -> None:
    for tolerance in (1e-4, 3e-2):  # also where the gap is too wide for the support to have settled
        found = amortisation_gap(generic_sae("topk"), tokens(60).float(), tolerance=tolerance)
        assert found.l0_optimum == pytest.approx(found.l0_encoder, rel=0.0101)
        assert found.excess > 0.01
    more = amortisation_gap(generic_sae("topk"), tokens(400).float())
    assert more.l0_optimum == pytest.approx(more.l0_encoder, rel=0.1)  # 64 of the 400 tokens set it


def numbers(found: AmortisationGap, scale: float = 1.0) -> list[float]:
    """All numbers, objectives divided by scale^2 and the penalty by scale."""
    units = {"penalty": scale, **dict.fromkeys(("certificate", "objective_zero"), scale**2)}
    units |= dict.fromkeys(("objective_encoder", "objective_optimum"), scale**2)
    return [value / units.get(name, 1.0) for name, value in dataclasses.asdict(found).items()]


def test_neither_units_nor_the_length_of_atoms_matter() -> None:
    sae, x = generic_sae("topk", dtype=torch.float64), tokens()
    plain = amortisation_gap(sae, x, penalty=0.2)
    folded = amortisation_gap(sae.folded(37.5), 37.5 * x, penalty=37.5 * 0.2)
    assert numbers(folded, 37.5) == pytest.approx(numbers(plain), rel=1e-6, abs=1e-9)
    lengths = torch.linspace(0.2, 5.0, 40, dtype=torch.float64)[:, None]
    with torch.no_grad():
        b_enc = sae.b_enc + 100.0  # rescaling latents must not change which are picked: keep all of them
        few = topk(sae.atoms, k=40)
        few.b_enc.copy_(b_enc)
        long = topk(sae.atoms * lengths, k=40)
        long.W_enc.copy_(few.W_enc / lengths)  # type: ignore[operator, arg-type]
        long.b_enc.copy_(few.b_enc / lengths[:, 0])
    first, second = (amortisation_gap(part, x, penalty=0.2) for part in (few, long))
    assert numbers(second) == pytest.approx(numbers(first), rel=1e-6, abs=1e-9)


def test_too_few_steps_are_counted() -> None:
    found = amortisation_gap(generic_sae("topk"), tokens().float(), penalty=0.05, max_iterations=2)
    assert found.num_unconverged == 80
    assert found.certificate > 1e-4 * found.objective_zero


def test_input_that_cannot_be_compared_is_refused() -> None:
    sae = generic_sae("topk")
    with pytest.raises(UserError, match="no tokens"):
        amortisation_gap(sae, torch.zeros(0, 12))
    with pytest.raises(UserError, match="width 12"):
        amortisation_gap(sae, torch.zeros(3, 11))
    with pytest.raises(DataError, match="do not vary"):
        amortisation_gap(sae, torch.ones(5, 12))
    x = tokens().float()
    with pytest.raises(UserError, match="not a positive number"):
        amortisation_gap(sae, x, penalty=0.0)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    with pytest.raises(DataError, match="fires on none"):
        amortisation_gap(sae, x)
    silent = amortisation_gap(sae, x, penalty=0.3)
    assert silent.attained == pytest.approx(0.0)
    assert silent.l0_encoder == silent.l0_pursuit == 0.0
    x[3, 3] = float("nan")
    with pytest.raises(DataError, match="1 of 80"):
        amortisation_gap(sae, x)


def test_where_tokens_are_scaled_one_by_one_codes_are_compared_on_scaled_tokens() -> None:
    normaliser = {"kind": "layer_norm", "epsilon": 1e-5}
    sae = generic_sae("topk", dtype=torch.float64, normaliser=normaliser)
    plain = generic_sae("topk", dtype=torch.float64)
    plain.load_state_dict(sae.state_dict())
    x = torch.logspace(-1, 2, 80, dtype=torch.float64)[:, None] * (tokens() + 0.7)
    found, wanted = amortisation_gap(sae, x), amortisation_gap(plain, sae.standardise(x).rows)
    assert found == wanted
