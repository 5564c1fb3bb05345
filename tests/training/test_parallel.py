from __future__ import annotations

import pytest

from plmsae.training.parallel import SMALLEST_BATCH, Parallel, Way, way_of

LARGE, SMALL = SMALLEST_BATCH, SMALLEST_BATCH - 1


@pytest.mark.parametrize(
    ("parallel", "num_processes", "num_saes", "batch_size", "device", "wanted"),
    [
        ("auto", 1, 9, LARGE, "cuda", "one"),
        ("data", 1, 1, LARGE, "cuda", "one"),
        ("data", 2, 1, 64, "cpu", "together"),
        ("data", 2, 9, 64, "cpu", "together"),
        ("independent", 2, 9, LARGE, "cuda", "apart"),
        ("independent", 8, 1, LARGE, "cuda", "one"),
        ("auto", 8, 1, LARGE, "cuda", "together"),
        ("auto", 8, 1, SMALL, "cuda", "one"),
        ("auto", 8, 1, LARGE, "cpu", "one"),
        ("auto", 8, 8, LARGE, "cuda", "apart"),
        ("auto", 8, 7, LARGE, "cuda", "together"),
        ("auto", 8, 7, SMALL, "cuda", "apart"),
        ("auto", 8, 2, LARGE, "cpu", "apart"),
    ],
)
def test_the_rule(
    parallel: Parallel, num_processes: int, num_saes: int, batch_size: int, device: str, wanted: Way
) -> None:
    assert way_of(parallel, num_processes, num_saes, batch_size, device) == wanted
