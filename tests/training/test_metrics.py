from typing import Any

import numpy as np
import pytest
import torch

from plmsae.errors import DataError
from plmsae.saes import build
from plmsae.training.export import prefix_fvu
from plmsae.training.metrics import ReconstructionMetrics
from tests.training.streams import Rows, activations, small_config


@pytest.mark.parametrize("normaliser", [None, {"kind": "layer_norm", "epsilon": 1e-5}, {"kind": "token_rms"}])
def test_metrics_equal_their_definitions_in_numpy_whatever_the_batches(normaliser: dict[str, Any] | None) -> None:
    config = small_config()
    sae, x = build(config.replace(normaliser=normaliser or config.normaliser)), activations(999) + 3.0
    z = sae.encode(x).detach().double().numpy()
    x_hat = sae(x).detach().double().numpy()
    rows = x.double().numpy()
    error = ((rows - x_hat) ** 2).sum(1)
    norms, norms_hat = np.linalg.norm(rows, axis=1), np.linalg.norm(x_hat, axis=1)
    inner = (rows * x_hat).sum(1)
    wanted = {
        "fvu": error.sum() / ((rows - rows.mean(0)) ** 2).sum(),
        "l0": (z > 0).sum(1).mean(),
        "cosine": (inner / norms / norms_hat).mean(),
        "l2_ratio": (norms_hat / norms).mean(),
        "relative_reconstruction_bias": (norms_hat**2).mean() / inner.mean(),
        "dead_fraction": ((z > 0).sum(0) == 0).mean(),
        "dense_fraction": ((z > 0).mean(0) > 0.1).mean(),
        "num_tokens": 999,
    }
    for size in (999, 100, 1):
        metrics = ReconstructionMetrics(16, 64)
        for batch in x.split(size):
            metrics.update(sae, batch)
        found = metrics.compute()
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name


def test_prefixes_are_compared_with_the_activations_where_tokens_are_scaled() -> None:
    config = small_config(architecture="matryoshka", group_sizes=[16, 48])
    sae = build(config.replace(normaliser={"kind": "layer_norm", "epsilon": 1e-5}))
    x = activations(600) + 3.0
    sae.calibrate(x)
    metrics = ReconstructionMetrics(16, 64)
    metrics.update(sae, x)
    found = prefix_fvu(sae, Rows(x, 200), 600)  # type: ignore[arg-type]
    assert found["fvu_prefix_2"] == pytest.approx(metrics.compute()["fvu"], rel=1e-6)
    assert found["fvu_prefix_1"] != pytest.approx(found["fvu_prefix_2"], rel=1e-2)


def test_a_constant_error_counts_and_the_mean_scores_one() -> None:
    """dictionary_learning's variance of the residual would call both perfect or better."""
    sae = build(small_config())
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)  # nothing fires: the reconstruction is b_dec
        x = activations(500)
        sae.b_dec.copy_(x.mean(0))
    at_mean, beside = ReconstructionMetrics(16, 64), ReconstructionMetrics(16, 64)
    at_mean.update(sae, x)
    assert at_mean.compute()["fvu"] == pytest.approx(1.0, rel=1e-5)
    with torch.no_grad():
        sae.b_dec.add_(1.0)
    beside.update(sae, x)
    assert beside.compute()["fvu"] == pytest.approx(1.0 + 16.0 / beside.variance, rel=1e-4)


def test_a_large_mean_does_not_wash_out_the_variance() -> None:
    sae = build(small_config())
    metrics = ReconstructionMetrics(16, 64)
    x = (activations(400) * 4).round() + 4096.0  # exact in fp32
    for batch in x.split(37):
        metrics.update(sae, batch)
    exact = float((x.double() - x.double().mean(0)).square().sum(1).mean())
    assert metrics.variance == pytest.approx(exact, rel=1e-6)


def test_density_histogram_by_hand() -> None:
    metrics = ReconstructionMetrics(16, 5)
    metrics.num_tokens = 1000
    metrics.counts = torch.tensor([0, 1, 10, 11, 1000])
    found = {low: number for low, number in metrics.density_histogram() if number}
    assert found == {-3.0: 1, -2.0: 2, -0.2: 1}
    assert len(metrics.density_histogram()) == 30


def test_rows_that_do_not_vary_are_refused() -> None:
    sae = build(small_config())
    for x in (torch.zeros(0, 16), torch.zeros(5, 16)):
        metrics = ReconstructionMetrics(16, 64)
        metrics.update(sae, x)
        with pytest.raises(DataError, match="do not vary"):
            metrics.compute()
