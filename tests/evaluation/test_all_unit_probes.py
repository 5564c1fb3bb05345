"""Paths of all-unit probes against scikit-learn, and their optimality conditions."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from plmsae.errors import UserError
from plmsae.evaluation.all_unit_probes import fit_path
from plmsae.evaluation.one_unit_probes import balanced_weights, fit_each_unit

STRENGTHS = (0.01, 0.1, 1.0, 10.0)


def problem(num_rows: int = 300, num_units: int = 40) -> tuple[sparse.csr_matrix, NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    x = rng.gamma(2.0, 0.3, (num_rows, num_units)) * (rng.random((num_rows, num_units)) < 0.25)
    x[:, 39] = 0.0
    z = x[:, 0] * 2 - x[:, 1] * 3 + x[:, 2] + rng.normal(0, 0.5, num_rows) - 0.3
    return sparse.csr_matrix(x), z > 0


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_path_is_that_of_scikit_learn(penalty: str) -> None:
    x, y = problem()
    found = fit_path(x, y, balanced_weights(y), STRENGTHS, penalty, tolerance=1e-8)
    assert found.converged.all()
    for place, c in enumerate(STRENGTHS):
        model = LogisticRegression(
            C=c, l1_ratio=float(penalty == "l1"), class_weight="balanced", solver="saga", tol=1e-8, max_iter=100_000,
            random_state=0,
        ).fit(x, y)  # fmt: skip
        np.testing.assert_allclose(found.weights[place], model.coef_[0], atol=2e-3)
        if found.weights[place].any():  # its solver watches the weights only, and stops where none moves
            assert found.intercepts[place] == pytest.approx(model.intercept_[0], abs=2e-3)
        if penalty == "l1":
            np.testing.assert_array_equal(found.weights[place] != 0, np.abs(model.coef_[0]) > 1e-5)


def test_conditions_of_the_optimum_hold_for_all_units() -> None:
    """L1: |gradient| is the penalty where a weight is, and at most that where none is."""
    x, y = problem()
    weights = balanced_weights(y)
    found = fit_path(x, y, weights, STRENGTHS, "l1", tolerance=1e-9)
    for w, b, c in zip(found.weights, found.intercepts, STRENGTHS):
        residual = weights * (1 / (1 + np.exp(-(x @ w + b))) - y)
        gradient = c * (x.T @ residual)
        np.testing.assert_allclose(gradient[w != 0], -np.sign(w[w != 0]), atol=0.02)
        assert np.abs(gradient).max() <= 1.02
        assert residual.sum() == pytest.approx(0, abs=1e-3)
    assert (np.diff((found.weights != 0).sum(axis=1)) >= 0).all()
    assert 0 < (found.weights[1] != 0).sum() < 39
    assert (found.weights[:, 39] == 0).all()


def test_too_strong_a_penalty_leaves_the_intercept() -> None:
    x, y = problem()
    found = fit_path(x, y, np.ones(len(y)), [1e-6], "l1")
    assert (found.weights == 0).all()
    assert found.intercepts[0] == pytest.approx(np.log(y.mean() / (1 - y.mean())), abs=1e-3)


def test_one_unit_alone_is_a_one_unit_probe() -> None:
    x, y = problem()
    weights = balanced_weights(y)
    alone = fit_each_unit(x, y, weights, np.full(40, 1 / 0.5))
    path = fit_path(x[:, [1]], y, weights, [0.5], "l2", tolerance=1e-9)
    assert path.weights[0, 0] == pytest.approx(alone.slopes[1], rel=1e-4)
    assert path.intercepts[0] == pytest.approx(alone.intercepts[1], rel=1e-4)


def test_a_path_that_makes_no_sense_is_refused() -> None:
    x, y = problem()
    with pytest.raises(UserError, match="unknown penalty 'l3'"):
        fit_path(x, y, np.ones(len(y)), [1.0], "l3")
    with pytest.raises(UserError, match="ascend"):
        fit_path(x, y, np.ones(len(y)), [1.0, 0.1], "l2")
