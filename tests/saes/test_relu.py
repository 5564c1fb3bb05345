import math

import pytest
import torch

from plmsae.saes import build
from plmsae.saes.l1_april import L1April
from plmsae.saes.relu import ReLU
from tests.saes.by_hand import ROWS, by_hand, fill
from tests.saes.conftest import config_of


def test_relu_by_hand() -> None:
    sae = by_hand(ReLU, "relu", k=3, penalty=0.5)
    wanted = torch.tensor([[3.0, 0.0, 1.3], [0.0, 2.0, 1.1], [3.0, 4.0, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(sae.encode(ROWS), wanted)
    # e1 and e2 reconstruct rows 0 to 2; what the third atom adds is the error.
    error, l1 = (1.3**2 + 1.1**2 + 4.5**2 + 2) / 4, (4.3 + 3.1 + 11.5) / 4
    terms = sae.loss(ROWS)
    assert float(terms.reconstruction) == pytest.approx(error)
    assert float(terms.aux) == pytest.approx(l1)
    assert float(terms.total) == pytest.approx(error + 0.5 * l1)
    assert terms.counts.tolist() == [2, 2, 3]
    sae.penalty_factor = 0.5
    assert float(sae.loss(ROWS).total) == pytest.approx(error + 0.25 * l1)


def test_the_gradient_of_the_penalty_by_hand() -> None:
    sae = by_hand(ReLU, "relu", k=3)
    sae.terms(ROWS).values["penalty"].backward()
    # Each active latent adds 1/4 of the row above b_dec: latent 0 of rows 0 and 2, latent 2 of rows 0, 1 and 2.
    assert sae.W_enc.grad is not None
    torch.testing.assert_close(sae.W_enc.grad[0], torch.tensor([6.0, 4.0]) / 4)
    torch.testing.assert_close(sae.W_enc.grad[2], torch.tensor([6.0, 6.0]) / 4)
    torch.testing.assert_close(sae.b_enc.grad, torch.tensor([2.0, 2.0, 3.0]) / 4)
    torch.testing.assert_close(sae.b_dec.grad, -torch.tensor([2 + 3 * 0.6, 2 + 3 * 0.8]) / 4)


def test_l1_april_by_hand() -> None:
    sae = by_hand(L1April, "l1_april", k=3, penalty=0.1)
    fill(sae.W_dec, [[2.0, 0.0], [0.0, 1.0], [0.3, 0.4]])
    x = ROWS[:1]  # no bias is taken off (4, 1): pre-activations 4, 1 and 2.4 + 0.8 - 0.5
    torch.testing.assert_close(sae.encode(x), torch.tensor([[4.0, 1.0, 2.7]]))
    terms = sae.loss(x)
    assert float(terms.reconstruction) == pytest.approx((1 + 8 + 0.81 - 4) ** 2 + (1 + 1 + 1.08 - 1) ** 2, rel=1e-5)
    assert float(terms.aux) == pytest.approx(4 * 2 + 1 * 1 + 2.7 * 0.5, rel=1e-5)
    unit = sae.with_unit_atoms()
    torch.testing.assert_close(unit.encode(x), torch.tensor([[8.0, 1.0, 1.35]]))
    torch.testing.assert_close(unit.atoms, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    assert float(unit.loss(x).aux) == pytest.approx(float(terms.aux), rel=1e-5)


def test_longer_atoms_with_smaller_latents_cost_the_same() -> None:
    """What unit norm is for in `relu`, the weighted penalty does in `l1_april`."""
    for architecture, equal in (("l1_april", True), ("relu", False)):
        sae = build(config_of(architecture), seed=3)
        x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
        before = sae.loss(x)
        with torch.no_grad():
            for name, factor in (("W_dec", 2.0), ("W_enc", 0.5), ("b_enc", 0.5)):
                getattr(sae, name).mul_(factor)
        after = sae.loss(x)
        torch.testing.assert_close(after.reconstruction, before.reconstruction)
        assert (float(after.aux) == pytest.approx(float(before.aux), rel=1e-4)) == equal


def test_l1_april_starts_as_in_the_paper() -> None:
    sae = build(config_of("l1_april", options={}))
    assert isinstance(sae, L1April)
    assert sae.penalty == pytest.approx(5 / math.sqrt(12))
    sae.initialise(torch.Generator().manual_seed(0), torch.ones(12))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((40,), 0.1))
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not sae.b_dec.any()
    assert not sae.b_enc.any()


def test_an_atom_of_norm_zero_stays_silent_without_nan() -> None:
    sae = build(config_of("l1_april"))
    assert isinstance(sae, L1April)
    with torch.no_grad():
        sae.W_dec[4] = 0.0
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    sae.loss(x).total.backward()  # type: ignore[no-untyped-call]
    assert all(bool(torch.isfinite(p.grad).all()) for p in sae.parameters() if p.grad is not None)
    unit = sae.with_unit_atoms()
    assert not unit.encode(x)[:, 4].any()
    torch.testing.assert_close(unit(x), sae(x))
