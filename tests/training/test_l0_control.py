"""The controller of L0: its law by hand, on a plant that is known, and on trainings of `jump_relu`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from plmsae.saes import build
from plmsae.training import l0_control as control
from plmsae.training.l0_control import L0Control, l0_control_of
from plmsae.training.loop import Trained, train
from tests.training.streams import Rows, activations, small_config, small_settings

OPTIONS = {"l0_control": "controller", "bandwidth": 0.05, "initial_threshold": 0.05}


def jump_relu(checkpoints: Path, target: float, **options: object) -> Trained:
    torch.set_num_threads(1)
    settings = small_settings(num_steps=400, learning_rate=4e-3, validate_every=20, checkpoint_every=400)
    config = small_config(64, architecture="jump_relu", target_l0=target, **{**OPTIONS, **options})
    return train(config, "auto", Rows(activations(16_000), 256), Rows(activations(300), 256), settings, checkpoints)


def test_its_law_by_hand() -> None:
    found = L0Control(target=8.0, start=1e-3, num_steps=100)
    assert float(found.factor) == 1.0
    found.observe(torch.tensor(32.0))  # the first one is where the reference starts
    assert float(found.factor) == 1.0
    reference = 32 * (8 / 32) ** (1 / 30)
    found.observe(torch.tensor(32.0))
    error = math.log(32 / reference)
    wanted = math.exp(control.PROPORTIONAL * error + control.INTEGRAL / 100 * error)
    assert float(found.factor) == pytest.approx(wanted)
    found.observe(torch.tensor(0.0))  # no latent active: an error of -1 at the most
    wanted = math.exp(-control.PROPORTIONAL + control.INTEGRAL / 100 * (error - 1))
    assert float(found.factor) == pytest.approx(wanted)


def test_the_weight_is_bounded_whatever_is_measured() -> None:
    for l0, bound in ((1e-9, control.LOWEST), (1e9, control.HIGHEST)):
        found = L0Control(target=8.0, start=1e-3, num_steps=50)
        found.observe(torch.tensor(8.0))
        for _ in range(2000):
            found.observe(torch.tensor(l0))
        assert 1e-3 * float(found.factor) == pytest.approx(bound)
        assert 1e-3 * math.exp(float(found.state[0])) == pytest.approx(bound)  # nor does the integral wind up


@pytest.mark.parametrize("num_steps", [200, 5000])
@pytest.mark.parametrize("right", [1e-5, 1e-3, 0.03])
def test_it_finds_the_weight_of_a_lagging_plant_for_every_length(num_steps: int, right: float) -> None:
    """L0 = 16 (right / lambda)^0.5, reached with a lag of a twentieth of the training; lambda starts at 1e-3."""
    found, log_l0 = L0Control(target=16.0, start=1e-3, num_steps=num_steps), math.log(500.0)
    for _ in range(num_steps):
        rest = math.log(16) + 0.5 * math.log(right / (1e-3 * float(found.factor)))
        log_l0 += (rest - log_l0) * 20 / num_steps
        found.observe(torch.tensor(math.exp(log_l0)))
    assert math.exp(log_l0) == pytest.approx(16, rel=0.05)
    assert 1e-3 * float(found.factor) == pytest.approx(right, rel=0.25)


def test_only_an_sae_that_asks_for_it_is_controlled() -> None:
    for options, wanted in (
        ({"target_l0": 5, "l0_control": "controller"}, True),
        ({"target_l0": 5}, False),
        ({}, False),
    ):
        sae = build(small_config(64, architecture="jump_relu", **options))
        assert (l0_control_of(sae, 10) is not None) == wanted
    assert l0_control_of(build(small_config()), 10) is None


@pytest.mark.parametrize("start", [1e-4, 1e-1])
@pytest.mark.parametrize("target", [4.0, 12.0])
def test_a_training_ends_at_the_target_from_any_start(target: float, start: float, tmp_path: Path) -> None:
    trained = jump_relu(tmp_path, target, penalty=start)
    x = activations(4000, seed=2)  # rows that the training did not see
    assert float((trained.sae.encode(x) > 0).sum(1).double().mean()) == pytest.approx(target, rel=0.05)
    weights = [row["penalty"] for row in trained.curves]
    assert all(0.999 * control.LOWEST <= weight <= 1.001 * control.HIGHEST for weight in weights)
    assert max(weights[-5:]) < 2 * min(weights[-5:])  # it has settled
    assert trained.sae.get_parameter("threshold").dtype == torch.float32


def test_the_quadratic_form_stays_above_the_target(tmp_path: Path) -> None:
    """What the controller is for: the reconstruction pulls L0 up where much is left to explain."""
    x, found = activations(4000, seed=2), {}
    for name, options in (("controller", {}), ("quadratic", {"penalty": 1.0})):
        trained = jump_relu(tmp_path / name, 4.0, l0_control=name, **options)
        found[name] = float((trained.sae.encode(x) > 0).sum(1).double().mean()) / 4.0 - 1
    assert found["quadratic"] > 0.05
    assert abs(found["controller"]) < 0.5 * found["quadratic"]
