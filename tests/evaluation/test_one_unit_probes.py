"""Probes of single units against scikit-learn, by hand, and as algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from plmsae.errors import DataError
from plmsae.evaluation import one_unit_probes
from plmsae.evaluation.one_unit_probes import balanced_weights, fit_each_unit


def activations(num_rows: int = 400, num_units: int = 30, seed: int = 0) -> sparse.csr_matrix:
    """Sparse units from rare to dense, one of them silent."""
    rng = np.random.default_rng(seed)
    x = rng.gamma(2.0, 0.2, (num_rows, num_units)) * (rng.random((num_rows, num_units)) < np.linspace(0, 1, num_units))
    return sparse.csr_matrix(x)


def labels(x: sparse.csr_matrix, seed: int = 1) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    return np.asarray(x[:, 20].toarray()[:, 0] + x[:, 5].toarray()[:, 0] + rng.normal(0, 0.3, x.shape[0]) > 0.5)


@pytest.mark.parametrize("c", [1e-2, 1.0, 1e4])
@pytest.mark.parametrize("balanced", [True, False])
def test_each_unit_has_the_solution_of_scikit_learn(c: float, balanced: bool) -> None:
    x = activations()
    y = labels(x)
    weights = balanced_weights(y) if balanced else np.ones(len(y))
    found = fit_each_unit(x, y, weights, np.full(x.shape[1], 1 / c))
    assert found.converged.all()
    for unit in (0, 1, 5, 20, 29):
        model = LogisticRegression(C=c, class_weight="balanced" if balanced else None, tol=1e-12, max_iter=10_000)
        model.fit(x[:, [unit]].toarray(), y)
        assert found.slopes[unit] == pytest.approx(model.coef_[0, 0], rel=1e-4, abs=1e-6)
        assert found.intercepts[unit] == pytest.approx(model.intercept_[0], rel=1e-4, abs=1e-6)


def test_the_gradient_is_zero_where_scikit_learn_would_stop_early() -> None:
    """Separable units with hardly any penalty: the slope is large and finite, and the stationary point exact."""
    x = activations()
    unit = x[:, 7].toarray()[:, 0]
    y = unit > 0.2
    weights, penalty = balanced_weights(y), 1e-6
    found = fit_each_unit(x, y, weights, np.full(x.shape[1], penalty))
    a, b = found.slopes[7], found.intercepts[7]
    assert found.converged[7]
    assert a > 100
    p = 1 / (1 + np.exp(-(a * unit + b)))
    assert (weights * (p - y)).sum() == pytest.approx(0, abs=1e-8)
    assert (weights * (p - y) * unit).sum() + penalty * a == pytest.approx(0, abs=1e-8)


def test_a_binary_unit_by_hand() -> None:
    """Without a penalty the probability is the share of positives: 3 of 4 where it fires, 1 of 4 where it does not."""
    x = sparse.csr_matrix([[1.0]] * 4 + [[0.0]] * 4)
    y = np.array([1, 1, 1, 0, 1, 0, 0, 0], dtype=bool)
    found = fit_each_unit(x, y, np.ones(8), np.array([1e-12]))
    assert found.intercepts[0] == pytest.approx(-np.log(3))
    assert found.slopes[0] == pytest.approx(2 * np.log(3))


def test_a_silent_unit_knows_the_share_of_positives_only() -> None:
    x = sparse.csr_matrix(np.zeros((8, 2)))
    y = np.array([1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    found = fit_each_unit(x, y, np.ones(8), np.ones(2))
    assert found.slopes.tolist() == [0.0, 0.0]
    assert found.intercepts == pytest.approx(np.log(2 / 6))
    assert balanced_weights(y).tolist() == [2.0, 2.0] + [8 / 12] * 6
    assert fit_each_unit(x, y, balanced_weights(y), np.ones(2)).intercepts == pytest.approx(0.0)


def test_the_block_that_a_unit_is_solved_in_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = activations()
    y, penalties = labels(x), np.linspace(0.1, 2, x.shape[1])
    whole = fit_each_unit(x, y, balanced_weights(y), penalties)
    monkeypatch.setattr(one_unit_probes, "ENTRIES_AT_ONCE", 1)
    alone = fit_each_unit(x, y, balanced_weights(y), penalties)
    np.testing.assert_allclose(whole.slopes, alone.slopes, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(whole.intercepts, alone.intercepts, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100.0))
def test_scale_order_and_sign_are_respected(seed: int, scale: float) -> None:
    """a x = (a / m) (m x) with the penalty in the unit of x; examples in another order; the opposite label."""
    x = activations(60, 4, seed)
    y = labels(activations(60, 30, seed), seed)
    if y.all() or not y.any():
        return
    weights = balanced_weights(y)
    found = fit_each_unit(x, y, weights, np.full(4, 0.5))
    scaled = fit_each_unit(x * scale, y, weights, np.full(4, 0.5 * scale**2))
    np.testing.assert_allclose(scaled.slopes * scale, found.slopes, rtol=1e-6, atol=1e-9)
    order = np.random.default_rng(seed).permutation(60)
    shuffled = fit_each_unit(x[order], y[order], weights[order], np.full(4, 0.5))
    np.testing.assert_allclose(shuffled.slopes, found.slopes, rtol=1e-6, atol=1e-9)
    opposite = fit_each_unit(x, ~y, weights, np.full(4, 0.5))
    np.testing.assert_allclose(opposite.slopes, -found.slopes, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(opposite.intercepts, -found.intercepts, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = sparse.csr_matrix(np.ones((4, 2))), np.array([True, False, True, False])
    with pytest.raises(DataError, match="both classes"):
        balanced_weights(np.ones(4, dtype=bool))
    with pytest.raises(DataError, match="both classes"):
        fit_each_unit(x, np.ones(4, dtype=bool), np.ones(4), np.ones(2))
    with pytest.raises(DataError, match="penalty"):
        fit_each_unit(x, y, np.ones(4), np.array([1.0, 0.0]))
    with pytest.raises(DataError, match="one target"):
        fit_each_unit(x, y, np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="finite"):
        fit_each_unit(x * np.nan, y, np.ones(4), np.ones(2))
