from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plmsae.errors import DataError, UserError
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from plmsae.training.export import held_out
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
    found = held_out([sae], Rows(x, 200), 600)[0].compute()  # type: ignore[list-item]
    rows = x.double()
    parts = sae.prefix_reconstructions(sae.encode(x))  # type: ignore[operator]
    errors = [(rows - sae.standardise(x).undo(part).double()).square().sum() for part in parts]
    variation = (rows - rows.mean(0)).square().sum()
    for number, error in enumerate(errors, start=1):
        assert found[f"fvu_prefix_{number}"] == pytest.approx(float(error / variation), rel=1e-5)
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


def matryoshka() -> SparseAutoencoder:
    sae = build(small_config(architecture="matryoshka", group_sizes=[4, 12, 48])).double()
    with torch.no_grad():
        sae.b_dec.add_(0.3)
    sae.calibrate(activations(500).double())
    return sae


def test_groups_equal_their_definitions_in_numpy() -> None:
    sae, x = matryoshka(), activations(700, seed=2).double()
    z, atoms, b = sae.encode(x).detach().numpy(), sae.atoms.detach().numpy(), sae.b_dec.detach().numpy()
    rows, metrics = x.numpy(), ReconstructionMetrics(16, 64, (4, 16, 64))
    for batch in x.split(300):
        metrics.update(sae, batch)
    found = metrics.compute()
    variation = ((rows - rows.mean(0)) ** 2).sum()
    fvu = [((rows - z[:, :size] @ atoms[:size] - b) ** 2).sum() / variation for size in (0, 4, 16, 64)]
    assert [found[f"fvu_prefix_{number}"] for number in range(4)] == pytest.approx(fvu)
    assert found["fvu_prefix_3"] == found["fvu"]
    for number, (first, last) in enumerate(((0, 4), (4, 16), (16, 64)), start=1):
        group = z[:, first:last] > 0
        assert found[f"fvu_gain_group_{number}"] == pytest.approx(fvu[number - 1] - fvu[number])
        assert found[f"l0_group_{number}"] == pytest.approx(group.sum(1).mean())
        assert found[f"dead_fraction_group_{number}"] == pytest.approx((~group.any(0)).mean())
    assert sum(found[f"l0_group_{number}"] for number in (1, 2, 3)) == pytest.approx(found["l0"])
    assert not [name for name in found if "group_4" in name]


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 120), max_size=6), order=st.randoms(use_true_random=False))
def test_shards_merged_in_any_order_are_one_pass(cuts: list[int], order: Random) -> None:
    """fp64 throughout: cutting and reordering changes nothing beyond the rounding of a sum."""
    sae, x = matryoshka(), 30.0 + activations(120, seed=4).double()
    whole = ReconstructionMetrics(16, 64, (4, 16, 64))
    whole.update(sae, x)
    places = [0, *sorted(cuts), 120]
    shards = [x[first:last] for first, last in pairwise(places)]
    order.shuffle(shards)
    total = ReconstructionMetrics(16, 64, (4, 16, 64))
    for shard in shards:
        part = ReconstructionMetrics(16, 64, (4, 16, 64))
        if len(shard):
            part.update(sae, shard)
        total.merge(part)
    assert total.compute() == pytest.approx(whole.compute(), rel=1e-8, abs=1e-10)
    assert torch.equal(total.counts, whole.counts)
    assert total.density_histogram() == whole.density_histogram()


def test_metrics_of_another_sae_are_not_merged() -> None:
    ours = ReconstructionMetrics(16, 64, (4, 64))
    for other in (ReconstructionMetrics(8, 64, (4, 64)), ReconstructionMetrics(16, 64), ReconstructionMetrics(16, 32)):
        with pytest.raises(UserError, match="another SAE"):
            ours.merge(other)
    for prefixes in ((4, 32), (32, 4, 64), (4, 4, 64), (0, 64)):
        with pytest.raises(UserError, match="do not ascend"):
            ReconstructionMetrics(16, 64, prefixes)
