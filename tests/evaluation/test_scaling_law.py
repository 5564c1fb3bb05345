"""Laws that are known are found again; what cannot be fitted is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.evaluation.scaling_law import Term, fit, token_law, width_law

Floats = NDArray[np.float64]
WIDTHS, ACTIVE, LENGTHS = (256, 512, 1024, 2048, 4096), (8, 16, 32, 64), (1e5, 2e5, 4e5, 8e5)
# Close to the fit of Gao et al. 2024, but for a term of width that is seen on so few widths.
GAO = {"alpha": 1.0, "beta_k": 0.26, "beta_n": -0.25, "gamma": -0.042, "zeta": -3.0, "eta": -0.085}


def grid(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[Floats, Floats]:
    pairs = np.array(list(itertools.product(first, second)), dtype=np.float64)
    return pairs[:, 0], pairs[:, 1]


def gao(n: Floats, k: Floats, p: dict[str, float]) -> Floats:
    """The formula of the paper, term by term."""
    first = p["alpha"] + p["beta_k"] * np.log(k) + p["beta_n"] * np.log(n) + p["gamma"] * np.log(k) * np.log(n)
    return np.exp(first) + np.exp(p["zeta"] + p["eta"] * np.log(k))


def test_the_law_of_gao_et_al_is_found_again() -> None:
    n, k = grid(WIDTHS, ACTIVE)
    loss = gao(n, k, GAO)
    law = width_law(n, k, loss)
    assert law.parameters == pytest.approx(GAO, rel=1e-4)
    np.testing.assert_allclose(law.predicted, loss, rtol=1e-8)
    assert law.error < 1e-8
    assert law.left_out_error < 1e-5
    # The exponent of n at k = 32 is beta_n + gamma log 32; without noise its interval is a point.
    interval = law.interval(lambda p: p["beta_n"] + p["gamma"] * math.log(32))
    assert interval.value == pytest.approx(-0.25 - 0.042 * math.log(32), rel=1e-4)
    assert interval.high - interval.low < 1e-3


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(-1, 2), beta_k=st.floats(-0.8, 0.3), beta_n=st.floats(-1.0, -0.2), gamma=st.floats(-0.05, 0.05))
def test_a_law_without_a_floor_is_found_whatever_its_exponents(
    alpha: float, beta_k: float, beta_n: float, gamma: float
) -> None:
    n, k = grid(WIDTHS, ACTIVE)
    truth = {"alpha": alpha, "beta_k": beta_k, "beta_n": beta_n, "gamma": gamma}
    loss = gao(n, k, {**truth, "zeta": -math.inf, "eta": 0.0})
    found = width_law(n, k, loss, floor=False)
    assert found.parameters == pytest.approx(truth, rel=1e-6, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(b=st.floats(-1.2, -0.3), d=st.floats(-1.5, -0.5), g=st.floats(-0.2, 1.0))
def test_width_and_tokens_are_told_apart(b: float, d: float, g: float) -> None:
    n, tokens = grid(WIDTHS, LENGTHS)
    loss = 0.1 * (n / 256) ** b + 0.2 * (tokens / 1e5) ** d * (n / 256) ** g
    law = token_law(n, tokens, loss)
    assert (law.parameters["b"], law.parameters["d"], law.parameters["g"]) == pytest.approx((b, d, g), abs=1e-2)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    n, k = grid(WIDTHS, ACTIVE)
    held = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 0.02, len(n))
        law = width_law(n, k, gao(n, k, {**GAO, "zeta": -math.inf}) * np.exp(noise), floor=False)
        interval = law.interval(lambda p: p["beta_n"])
        held += interval.low <= GAO["beta_n"] <= interval.high
        assert 0.008 < law.error < law.left_out_error < 0.04
    assert 35 <= held <= 40


def test_one_training_that_went_wrong_moves_little() -> None:
    n, k = grid(WIDTHS, ACTIVE)
    truth = {**GAO, "zeta": -math.inf}
    noise = np.random.default_rng(0).normal(0, 0.01, len(n))
    loss = gao(n, k, truth) * np.exp(noise)
    clean = width_law(n, k, loss, floor=False).parameters
    loss[3] *= 3.0
    law = width_law(n, k, loss, floor=False)
    assert law.parameters["beta_n"] == pytest.approx(clean["beta_n"], abs=0.1)
    assert int(np.abs(law.errors).argmax()) == 3
    squares = np.linalg.lstsq(np.stack([np.ones(20), np.log(n)], 1), np.log(loss), rcond=None)[0]
    assert abs(squares[1] - clean["beta_n"]) > abs(law.parameters["beta_n"] - clean["beta_n"])


def test_a_floor_that_is_not_there_does_not_help_with_what_was_left_out() -> None:
    n, k = grid(WIDTHS, ACTIVE)
    noise = np.random.default_rng(1).normal(0, 0.02, len(n))
    plain = gao(n, k, {**GAO, "zeta": -math.inf}) * np.exp(noise)
    assert width_law(n, k, plain, floor=True).left_out_error > 0.95 * width_law(n, k, plain, floor=False).left_out_error
    steep = {**GAO, "alpha": 3.0, "beta_n": -0.7}
    bent = gao(n, k, steep) * np.exp(noise)
    assert width_law(n, k, bent, floor=True).left_out_error < 0.7 * width_law(n, k, bent, floor=False).left_out_error


def test_the_order_of_the_trainings_does_not_matter() -> None:
    n, k = grid(WIDTHS, ACTIVE)
    loss = gao(n, k, GAO) * np.exp(np.random.default_rng(2).normal(0, 0.01, len(n)))
    order = np.random.default_rng(3).permutation(len(n))
    first, second = width_law(n, k, loss), width_law(n[order], k[order], loss[order])
    assert second.parameters == pytest.approx(first.parameters, rel=1e-4)
    scaled = width_law(n, k, 100 * loss)  # in other units only the constants change
    for name in ("beta_k", "beta_n", "gamma", "eta"):
        assert scaled.parameters[name] == pytest.approx(first.parameters[name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_losses_that_are_no_losses_are_refused(wrong: float) -> None:
    n, k = grid(WIDTHS, ACTIVE)
    loss = gao(n, k, GAO)
    loss[4] = wrong
    with pytest.raises(DataError, match="not a list of numbers above 0"):
        width_law(n, k, loss)


def test_too_few_trainings_and_sizes_that_do_not_vary_are_refused() -> None:
    n, k = grid(WIDTHS[:2], ACTIVE[:3])
    with pytest.raises(DataError, match="6 trainings cannot tell 6 parameters apart") as caught:
        width_law(n, k, gao(n, k, GAO))
    assert "at least 8" in (caught.value.fix or "")
    n, k = grid(WIDTHS, (32,))
    with pytest.raises(DataError, match="do not tell alpha, beta_k, beta_n, gamma apart"):
        width_law(np.tile(n, 2), np.tile(k, 2), np.ones(10))
    only = np.array([256.0] * 7 + [512.0])
    with pytest.raises(DataError, match="do not tell a, b apart when one of them is left out"):
        token_law(only, np.geomspace(1e5, 1e6, 8), np.ones(8))


def test_terms_of_ones_own() -> None:
    x = np.linspace(1, 3, 9)
    law = fit([Term(("c", "p"), np.stack([np.ones(9), np.log(x)], 1))], 2 * x**1.5)
    assert law.parameters == pytest.approx({"c": math.log(2), "p": 1.5})
