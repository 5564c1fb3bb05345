from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plmsae.errors import DataError, UserError
from plmsae.saes import build, load_folder, save
from plmsae.saes.jump_relu import JumpReLU, kernel
from tests.saes.by_hand import ROWS, by_hand, fill
from tests.saes.conftest import config_of, generic_sae

CENTERED = ROWS - 1.0


def small(**options: object) -> JumpReLU:
    """Pre-activations (3, 0, 1.3), (0, 2, 1.1), (3, 4, 4.5), (-1, -1, -1.9) of CENTERED; thresholds 0.5, 2, 1.2."""
    sae = by_hand(JumpReLU, "jump_relu", k=3, bandwidth=0.4, **options)
    fill(sae.b_dec, [0.0, 0.0])
    fill(sae.threshold, [0.5, 2.0, 1.2])
    return sae


def test_the_forward_pass_by_hand() -> None:
    sae = small(penalty=0.1)
    wanted = torch.tensor([[3.0, 0.0, 1.3], [0.0, 0.0, 0.0], [3.0, 4.0, 4.5], [0.0, 0.0, 0.0]])  # 2 > 2 is false
    torch.testing.assert_close(sae.encode(CENTERED), wanted)
    terms = sae.loss(CENTERED)
    error = (1.3**2 + 2**2 + 4.5**2 + 2) / 4
    assert float(terms.reconstruction) == pytest.approx(error)
    assert float(terms.aux) == pytest.approx(5 / 4)
    assert float(terms.total) == pytest.approx(error + 0.1 * 5 / 4)
    assert terms.counts.tolist() == [2, 1, 2]


def test_the_estimated_gradients_by_hand() -> None:
    sae = small()
    values = sae.terms(CENTERED).values
    (penalty,) = torch.autograd.grad(values["penalty"], sae.threshold, retain_graph=True)
    # Within 0.2 of their threshold: latent 1 of row 1 (at 2), latent 2 of rows 0 and 1 (at 1.3 and 1.1).
    torch.testing.assert_close(penalty, torch.tensor([0.0, -1 / 0.4, -2 / 0.4]) / 4)
    (error,) = torch.autograd.grad(values["reconstruction"], sae.threshold)
    # dL/dz = (x^ - x) . W_dec / 2: row 1 has (0, -2), so -1 and -0.8; row 0 has 1.3 along the atom, so 0.65.
    torch.testing.assert_close(error, torch.tensor([0.0, -2.0 / 0.4 * -1.0, -1.2 / 0.4 * (-0.8 + 0.65)]))


def test_the_kernel_is_as_wide_as_the_bandwidth() -> None:
    pre = torch.tensor([[0.29, 0.31, 0.5, 0.69, 0.71]])
    assert kernel(pre, torch.full((5,), 0.5), 0.4).tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_with_a_controller_the_penalty_is_the_plain_one_and_starts_small() -> None:
    sae, plain = small(target_l0=5, l0_control="controller"), small()
    assert sae.controlled
    assert not plain.controlled
    assert not small(target_l0=5).controlled
    assert sae.penalty == plain.penalty == 1e-3
    assert float(sae.terms(CENTERED).values["penalty"]) == 5 / 4
    with pytest.raises(UserError, match=r"option penalty = 0\.0 is not a number > 0"):  # nothing to control
        small(target_l0=5, l0_control="controller", penalty=0.0)
    with pytest.raises(UserError, match="l0_control = 'quadatic' is unknown") as error:
        small(target_l0=5, l0_control="quadatic")
    assert error.value.fix == "did you mean 'quadratic'?"


def test_the_kernel_of_the_penalty_on_latents_sees_its_upper_half() -> None:
    for name, wanted in (("pre_activations", [0.0, -1.0, -2.0]), ("latents", [0.0, 0.0, -1.0])):
        sae = small(penalty_kernel=name)
        (gradient,) = torch.autograd.grad(sae.terms(CENTERED).values["penalty"], sae.threshold)
        # At 2 of 2, at 1.3 and 1.1 of 1.2: only 1.3 is above its threshold.
        torch.testing.assert_close(gradient, torch.tensor(wanted) / 0.4 / 4)


def test_target_l0_by_hand_and_its_direction() -> None:
    sae = small(target_l0=5, l0_control="quadratic")
    assert sae.penalty == 1.0
    value = sae.terms(CENTERED).values["penalty"]
    assert float(value) == pytest.approx((1.25 / 5 - 1) ** 2)
    (gradient,) = torch.autograd.grad(value, sae.threshold)
    assert bool((gradient >= 0).all())  # too few fire: thresholds must fall
    assert bool(gradient.any())
    sae = small(target_l0=0.5, l0_control="quadratic")
    (gradient,) = torch.autograd.grad(sae.terms(CENTERED).values["penalty"], sae.threshold)
    assert bool((gradient <= 0).all())  # too many: they must rise
    assert bool(gradient.any())


def test_training_reaches_the_target_l0() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2000, 48, generator=generator) - 1.6).relu() @ torch.randn(48, 12, generator=generator)
    x = x / x.square().sum(1).mean().sqrt()
    found = []
    for target in (3, 9):
        options = {"target_l0": target, "l0_control": "quadratic", "penalty": 5.0, "bandwidth": 0.1}
        options["initial_threshold"] = 0.05
        sae = build(config_of("jump_relu", options=options), seed=1)
        sae.initialise(torch.Generator().manual_seed(1), x.mean(0))
        optimizer = torch.optim.Adam(sae.parameters(), lr=4e-3, betas=sae.betas)
        for step in range(300):
            optimizer.zero_grad()
            sae.loss(x[torch.arange(step * 200, step * 200 + 200) % 2000]).total.backward()  # type: ignore[no-untyped-call]
            sae.constrain_gradients()
            optimizer.step()
            sae.constrain_weights()
        found.append(float((sae.encode(x) > 0).sum(1).double().mean()))
    assert found == pytest.approx([3, 9], rel=0.1)


def test_thresholds_are_raw_fp32_and_never_negative(tmp_path: Path) -> None:
    sae = generic_sae("jump_relu")
    assert isinstance(sae, JumpReLU)
    assert sae.threshold.dtype == torch.float32
    with torch.no_grad():
        sae.threshold.fill_(-1.0)
    sae.constrain_weights()
    assert not sae.threshold.any()
    save(sae, tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    save_file({**tensors, "threshold": tensors["threshold"] - 1.0}, tmp_path / "sae.safetensors")
    with pytest.raises(DataError, match="40 thresholds are negative"):
        load_folder(tmp_path)


def test_it_starts_centred() -> None:
    sae = build(config_of("jump_relu"))
    center = torch.arange(12.0)
    sae.initialise(torch.Generator().manual_seed(0), center)
    x = center + 0.001
    torch.testing.assert_close(sae(x.unsqueeze(0)), center.unsqueeze(0))
    assert not sae.encode(x.unsqueeze(0)).any()
