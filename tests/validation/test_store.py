from __future__ import annotations

import pandas as pd
import pytest

from plmsae.errors import DataError
from plmsae.validation.store import require_sound_store


def summary(**changes: list[object]) -> pd.DataFrame:
    columns: dict[str, list[object]] = {
        "chunk": ["train/a", "train/b"],
        "num_rows": [100, 50],
        "num_nonfinite": [0, 0],
        "mean_norm": [3.5, 3.6],
    }
    return pd.DataFrame({**columns, **changes})


def test_a_sound_store_passes() -> None:
    require_sound_store(summary(), num_rows=150, where="store")


@pytest.mark.parametrize(
    ("changes", "rule", "shown"),
    [
        ({"num_rows": [100, 49]}, "num_rows_as_expected", "149"),
        ({"num_rows": [150, 0]}, "chunk_not_empty", "train/b"),
        ({"num_nonfinite": [0, 7]}, "all_finite", "train/b (num_nonfinite=7)"),
        ({"mean_norm": [3.5, 0.0]}, "mean_norm_plausible", "train/b"),
        ({"mean_norm": [3.5, float("nan")]}, "mean_norm_present", "train/b"),
        ({"mean_norm": [3.5, float("inf")]}, "mean_norm_plausible", "train/b"),
        ({"chunk": ["train/a", "train/a"]}, "chunks_unique", "train/a"),
    ],
)
def test_each_defect_is_named(changes: dict[str, list[object]], rule: str, shown: str) -> None:
    with pytest.raises(DataError) as error:
        require_sound_store(summary(**changes), num_rows=150, where="outputs/extract_activations")
    assert f"rule '{rule}'" in error.value.problem
    assert shown in error.value.problem
    assert error.value.where == "outputs/extract_activations"


def test_an_empty_store_is_refused() -> None:
    with pytest.raises(DataError, match="not_empty"):
        require_sound_store(summary().iloc[:0], num_rows=150, where="store")
