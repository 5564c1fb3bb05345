"""Reported quantities of losses that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from plmsae.evaluation.fidelity_quantities import compare, loss_names, means

INTERVENTIONS = ("clean", "sae", "zero", "mean", "random")


def test_every_quantity_by_hand() -> None:
    values = {"ce_clean": 2.0, "ce_sae": 2.3, "ce_zero": 4.0, "ce_mean": 3.0, "ce_random": 2.1}
    values |= {"kl_sae": 0.4, "kl_zero": 2.0, "kl_mean": 1.0, "kl_random": 0.1}
    assert list(values) == loss_names(INTERVENTIONS)
    found = {name: float(value[0]) for name, value in compare({n: np.array([v]) for n, v in values.items()}).items()}
    expected = {
        **values,
        "delta_ce_sae": 0.3,
        "delta_ce_zero": 2.0,
        "delta_ce_mean": 1.0,
        "delta_ce_random": 0.1,
        "loss_recovered_zero": 85.0,  # (4 - 2.3) / (4 - 2)
        "loss_recovered_mean": 70.0,  # (3 - 2.3) / (3 - 2)
        "excess_ce": 0.2,
        "excess_kl": 0.3,
        "kl_ratio": 4.0,
    }
    assert found == pytest.approx(expected)


def test_what_cannot_be_divided_is_no_number_and_nothing_is_clipped() -> None:
    values = {f"ce_{name}": np.array([1.0, 1.0]) for name in INTERVENTIONS}
    values |= {f"kl_{name}": np.zeros(2) for name in INTERVENTIONS[1:]}
    values["ce_sae"] = np.array([1.0, 5.0])
    values["ce_zero"] = np.array([1.0, 3.0])
    found = compare(values)
    assert np.isnan(found["loss_recovered_mean"]).all()
    assert np.isnan(found["kl_ratio"]).all()
    np.testing.assert_allclose(found["loss_recovered_zero"], [np.nan, -100.0])


def test_a_mean_of_nothing_is_no_number() -> None:
    np.testing.assert_array_equal(means(np.array([[6.0, 0.0]]), np.array([[3.0, 0.0]])), [[2.0, np.nan]])
