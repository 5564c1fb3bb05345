from pathlib import Path

import pytest
import torch

from plmsae.errors import UserError
from plmsae.training.center import geometric_median, starting_center
from plmsae.training.loop import train
from tests.training.streams import Rows, activations, small_config, small_settings


def test_collinear_points_have_their_median() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [1000.0]])
    assert abs(float(geometric_median(x, max_iterations=10_000, tolerance=1e-9)) - 2.0) < 1e-3


def test_fermat_point_of_a_triangle_sees_its_sides_at_120_degrees() -> None:
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    point = geometric_median(x, max_iterations=10_000, tolerance=1e-12)
    unit = torch.nn.functional.normalize(x - point, dim=1)
    cosines = unit @ unit.t()
    assert torch.allclose(cosines[[0, 0, 1], [1, 2, 2]], torch.full((3,), -0.5, dtype=torch.float64), atol=1e-6)


def test_outliers_pull_it_less_than_the_mean() -> None:
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    spoiled = torch.cat([x, torch.full((50, 5), 100.0)])
    assert float(geometric_median(spoiled).norm()) < 0.3 < float(spoiled.mean(0).norm())


def test_equal_rows_and_a_single_row() -> None:
    assert torch.equal(geometric_median(torch.full((7, 3), 2.0)), torch.full((3,), 2.0))
    assert torch.equal(geometric_median(torch.tensor([[1.0, 2.0]])), torch.tensor([1.0, 2.0]))


def test_the_three_starts_and_no_other() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 3.0], [8.0, 0.0]])
    assert starting_center(x, "zero") is None
    assert torch.equal(starting_center(x, "mean"), torch.tensor([3.0, 1.0]))  # type: ignore[arg-type]
    assert torch.equal(starting_center(x, "geometric_median"), geometric_median(x))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown starting centre 'median'"):
        starting_center(x, "median")


def test_the_training_starts_where_it_is_told(tmp_path: Path) -> None:
    x = activations(4000)
    found = {}
    for kind in ("geometric_median", "mean", "zero"):
        settings = small_settings(num_steps=1, learning_rate=1e-9, center=kind)
        folder = tmp_path / kind
        found[kind] = train(small_config(), "auto", Rows(x, 256), Rows(x, 256), settings, folder).sae.b_dec
    torch.testing.assert_close(found["mean"], x[:2048].mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["geometric_median"], geometric_median(x[:2048]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["zero"], torch.zeros(16), atol=1e-6, rtol=0)
