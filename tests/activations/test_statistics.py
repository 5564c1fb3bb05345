from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plmsae.activations.statistics import RowStatistics


def of(rows: torch.Tensor, stored: torch.Tensor | None = None) -> RowStatistics:
    statistics = RowStatistics.zeros(rows.shape[1])
    statistics.add(rows, rows if stored is None else stored)
    return statistics


def test_by_hand():
    statistics = of(torch.tensor([[3.0, 4.0], [0.0, 5.0], [6.0, 8.0]]))
    assert statistics.mean.tolist() == pytest.approx([3, 17 / 3])
    assert statistics.second_moment.tolist() == pytest.approx([15, 35])
    assert statistics.scale == pytest.approx(50**0.5)
    # mean squared norm 50; squared norm of the mean 9 + 289 / 9.
    assert statistics.centred_fraction == pytest.approx(1 - (9 + 289 / 9) / 50)
    assert statistics.median_norm == pytest.approx(5, rel=0.011)
    assert statistics.relative_rounding_error == 0
    assert statistics.num_outliers == 0


def test_scaled_rows_have_mean_squared_norm_one():
    rows = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * 40 + 3
    assert (rows / of(rows).scale).double().square().sum(1).mean() == pytest.approx(1)


def test_rounding_error_is_that_of_the_stored_values():
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    stored = rows.bfloat16()
    expected = ((rows - stored.float()).double().square().sum() / stored.double().square().sum()).sqrt()
    statistics = of(rows, stored)
    assert statistics.relative_rounding_error == pytest.approx(float(expected))
    assert 1e-3 < statistics.relative_rounding_error < 4e-3  # 8 bits of mantissa
    assert statistics.total.tolist() == stored.double().sum(0).tolist()


def test_sums_are_in_double_precision():
    # In fp32 a sum of 2^24 and ones would stand still.
    rows = torch.ones(3000, 1)
    rows[0] = 2.0**24
    assert of(rows).total.item() == 2**24 + 2999


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 2**20))
def test_merging_pieces_equals_the_whole(sizes, seed):
    rows = torch.randint(-8, 9, (sum(sizes), 3), generator=torch.Generator().manual_seed(seed)).float()
    merged = RowStatistics.zeros(3)
    for piece in rows.split(sizes):
        merged.merge(of(piece))
    for name, tensor in of(rows).tensors().items():
        assert torch.equal(merged.tensors()[name], tensor), name
    again = RowStatistics.from_tensors(merged.tensors())
    assert again.scale == merged.scale


@given(st.integers(0, 2**20), st.floats(1e-6, 1e6))
def test_median_is_within_a_bin(seed, scale):
    norms = np.exp(np.random.default_rng(seed).normal(size=101)) * scale
    rows = torch.tensor(norms[:, None], dtype=torch.float32)
    assert of(rows).median_norm == pytest.approx(np.median(norms), rel=0.012)


def test_outliers_are_rows_beyond_ten_medians():
    norms = torch.tensor([*[1.0] * 95, 9.5, 9.8, 10.3, 11.0, 1e7])
    assert of(norms[:, None]).num_outliers == 3


def test_zero_and_enormous_norms_are_counted():
    rows = torch.tensor([[0.0], [1e-30], [3e38], [1.0]])
    statistics = of(rows)
    assert int(statistics.norms.sum()) == 4
    assert statistics.num_outliers == 2  # the median is the second smallest, at the lower end of the bins
