import torch

from plmsae.training.center import geometric_median


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
