import math

import pytest
import torch

from plmsae.errors import UserError
from plmsae.saes import build
from plmsae.saes.l1_april import L1April
from plmsae.saes.relu import ReLU
from tests.saes.by_hand import ROWS, by_hand, fill
from tests.saes.conftest import config_of, generic_sae


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


def test_the_unsquared_loss_by_hand() -> None:
    sae = by_hand(ReLU, "relu", k=3, penalty=0.5, reconstruction="unsquared")
    error, l1 = (1.3 + 1.1 + 4.5 + math.sqrt(2)) / 4, (4.3 + 3.1 + 11.5) / 4
    terms = sae.loss(ROWS)
    assert float(terms.total) == pytest.approx(error + 0.5 * l1)
    # What the curves show stays the squared error, so that FVU means the same.
    assert float(terms.reconstruction) == pytest.approx((1.3**2 + 1.1**2 + 4.5**2 + 2) / 4)
    scaled = by_hand(ReLU, "relu", k=3, penalty=0.5, reconstruction="unsquared")
    fill(scaled.b_dec, [3.0, 3.0])
    fill(scaled.b_enc, [0.0, 0.0, -1.5])
    assert float(scaled.loss(3 * ROWS).total) == pytest.approx(3 * float(terms.total))  # one lambda for every scale


def test_the_unsquared_gradient_is_that_of_the_norm_and_zero_where_nothing_is_left() -> None:
    sae = by_hand(ReLU, "relu", k=3, penalty=0.5, reconstruction="unsquared")
    values = sae.terms(ROWS).values
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    gradients = torch.autograd.grad(values["reconstruction"], [sae.get_parameter(name) for name in names])
    assert all(bool(gradient.any()) for gradient in gradients)
    # Row 3 is off by (-1, -1) with no latent active, rows 0 to 2 by -z_2 (0.6, 0.8): unit vectors x^ - x, times z / 4.
    torch.testing.assert_close(gradients[2][0], torch.tensor([0.6, 0.8]) * (3 + 3) / 4)
    torch.testing.assert_close(gradients[2][2], torch.tensor([0.6, 0.8]) * (1.3 + 1.1 + 4.5) / 4)
    fill(sae.b_enc, [0.0, 0.0, -9.0])  # the third latent is silent: rows 0 to 2 are reconstructed exactly
    x = ROWS[:3]
    assert torch.equal(sae(x), x)
    sae.loss(x).total.backward()  # type: ignore[no-untyped-call]
    for name in names:
        gradient = sae.get_parameter(name).grad
        assert gradient is not None
        assert bool(torch.isfinite(gradient).all()), name
    assert sae.W_dec.grad is not None
    assert not sae.W_dec.grad.any()  # the penalty does not reach the atoms


def test_atoms_that_start_short_are_projected_along_their_direction_and_end_up_unit() -> None:
    sae = build(config_of("relu", options={"initial_norm": 0.1}), seed=2)
    torch.testing.assert_close(sae.atoms.norm(dim=1), torch.full((40,), 0.1))
    assert torch.equal(sae.get_parameter("W_enc"), sae.atoms)
    sae.loss(torch.randn(30, 12, generator=torch.Generator().manual_seed(0))).total.backward()  # type: ignore[no-untyped-call]
    sae.constrain_gradients()
    gradient = sae.get_parameter("W_dec").grad
    assert gradient is not None
    assert bool(gradient.any())
    torch.testing.assert_close((gradient * sae.atoms).sum(1), torch.zeros(40), atol=1e-6, rtol=0)
    sae.constrain_weights()
    torch.testing.assert_close(sae.atoms.norm(dim=1), torch.ones(40))


def test_an_encoder_apart_from_the_atoms() -> None:
    sae = build(config_of("relu", options={"initial_encoder": "uniform"}), seed=2)
    encoder = sae.get_parameter("W_enc")
    assert float(encoder.abs().max()) <= 1 / math.sqrt(12)
    assert float(encoder.square().mean()) == pytest.approx(1 / 36, rel=0.15)
    torch.testing.assert_close(sae.atoms.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.atoms, build(config_of("relu"), seed=2).atoms)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruction": "square"}, "reconstruction = 'square' is unknown"),
        ({"initial_encoder": "atom"}, "initial_encoder = 'atom' is unknown"),
        ({"initial_norm": 0.0}, "initial_norm = 0.0 is not a number > 0"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(config_of("relu", options=options))
    assert error.value.fix


def test_a_bias_before_the_encoder_of_l1_april_is_folded_into_the_one_behind_it() -> None:
    sae = generic_sae("l1_april", options={"penalty": 0.02, "pre_bias": True})
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    pre = (x - sae.b_dec) @ sae.get_parameter("W_enc").T + sae.b_enc
    torch.testing.assert_close(sae.encode(x), pre.relu())
    unit = sae.with_unit_atoms()
    assert unit.config.options == {"penalty": 0.02}
    torch.testing.assert_close(unit(x), sae(x))
    again = build(unit.config)  # what a reader builds from the configuration alone
    again.load_state_dict(unit.state_dict())
    torch.testing.assert_close(again(x), sae(x))
    with pytest.raises(UserError, match="pre_bias = 1 is not true or false"):
        build(config_of("l1_april", options={"pre_bias": 1}))


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
