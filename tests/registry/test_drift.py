"""Drift: paired differences against numbers worked out by hand, and when a difference counts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.errors import DataError
from plmsae.evaluation.bootstrap import Interval
from plmsae.registry.drift import Drift, Settings, Side, _worse, compare

HOW = Settings(min_pairs=3, num_resamples=400, confidence=0.95, seed=0)
METRICS = {"fvu": 0.3, "fvu_low": 0.28, "fvu_high": 0.33, "masked_loss_recovered_mean": 90.0, "l0": 8.0}


def proteins(folder: Path, **columns: object) -> Path:
    """A table of single proteins as the fidelity evaluation writes it."""
    folder.mkdir(exist_ok=True)
    table = pd.DataFrame(
        {
            "accession": ["P1", "P2", "P3", "P4"],
            "offset": 0,
            "num_residues": [10, 20, 30, 40],
            "num_masked": [2, 3, 4, 6],
            "masked_ce_clean": [1.0, 1.2, 1.4, 1.1],
            "masked_ce_sae": [1.1, 1.3, 1.5, 1.2],
            "masked_ce_mean": [2.0, 2.2, 2.4, 2.1],
            "mean_squared_error": [1.0, 2.0, 1.5, 0.5],
            "variance": [4.0, 5.0, 3.0, 2.0],
            "l0": [8.0, 7.0, 9.0, 8.0],
        }
    ).assign(**columns)
    table.to_parquet(folder / "per_sequence.parquet", index=False)
    return folder


def held(before: Path, after: Path, metric: str, tolerance: float = 0.02, evaluation: str = "fidelity") -> Drift:
    better = "less" if metric in ("fvu", "l0") else "more"
    return compare(evaluation, metric, better, tolerance, Side(before, METRICS), Side(after, METRICS), HOW)  # type: ignore[arg-type]


def test_fvu_is_the_ratio_of_sums_over_the_proteins_in_common(tmp_path: Path) -> None:
    before = proteins(tmp_path / "before")
    after = proteins(tmp_path / "after", mean_squared_error=[2.0, 4.0, 3.0, 1.0])
    found = held(before, after, "fvu")
    # 10 * 1 + 20 * 2 + 30 * 1.5 + 40 * 0.5 = 115 and 10 * 4 + 20 * 5 + 30 * 3 + 40 * 2 = 310.
    assert found.recorded == pytest.approx(115 / 310)
    assert found.now == pytest.approx(230 / 310)
    assert found.difference == pytest.approx(115 / 310)
    assert (found.num_pairs, found.unit, found.unpaired) == (4, "proteins", "")
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 115 / 310 < found.high
    assert found.drifted
    assert not held(before, after, "fvu", tolerance=0.5).drifted
    assert not held(after, before, "fvu").drifted  # better is never drift


def test_what_proteins_have_in_common_cancels_out(tmp_path: Path) -> None:
    before = proteins(tmp_path / "before")
    # Of each protein the same share is lost: 100 * (1 - 0.1) = 90 % before, 100 * (1 - 0.2) = 80 % now.
    after = proteins(tmp_path / "after", masked_ce_sae=[1.2, 1.4, 1.6, 1.3])
    found = held(before, after, "masked_loss_recovered_mean", tolerance=2.0)
    assert found.recorded == pytest.approx(90)
    assert (found.difference, found.low, found.high) == (pytest.approx(-10), pytest.approx(-10), pytest.approx(-10))
    assert found.drifted
    assert "4 proteins in pairs: drifted (tolerance 2)" in found.text()
    assert not held(before, before, "masked_loss_recovered_mean", tolerance=0.0).drifted


def test_only_the_same_protein_at_the_same_length_is_a_pair(tmp_path: Path) -> None:
    before = proteins(tmp_path / "before")
    after = proteins(tmp_path / "after", accession=["P1", "P2", "P3", "P9"], num_residues=[10, 20, 30, 40])
    found = held(before, after, "fvu")
    assert found.num_pairs == 3
    assert found.recorded == pytest.approx(95 / 230)
    longer = proteins(tmp_path / "longer", accession=["P1", "P2", "P3", "P9"], num_residues=[10, 20, 31, 40])
    found = held(before, longer, "fvu")
    assert found.num_pairs == 0
    assert found.unpaired == "2 proteins in common, 3 are needed"
    assert (found.recorded, found.now) == (0.3, 0.3)


def test_windows_of_a_protein_are_one_pair(tmp_path: Path) -> None:
    before = proteins(tmp_path / "before", accession=["P1", "P1", "P2", "P3"])
    found = held(before, before, "l0")
    assert found.num_pairs == 3
    assert found.recorded == pytest.approx((80 + 140 + 270 + 320) / 100)


def test_concepts_are_paired_by_name(tmp_path: Path) -> None:
    for name, f1 in (("before", [0.9, 0.5, 0.4, 0.2]), ("after", [0.7, 0.3, 0.2, 0.9])):
        (tmp_path / name).mkdir()
        other = "Site" if name == "before" else "Signal"
        pd.DataFrame(
            {
                "concept": ["Zinc finger", "Helix", "Strand", other, "Zinc finger"],
                "method": ["sae"] * 4 + ["neurons"],
                "f1_test": [*f1, 0.1],
            }
        ).to_csv(tmp_path / name / "concepts.csv", index=False)
    metrics = {"mean_f1_sae": 0.5}
    sides = Side(tmp_path / "before", metrics), Side(tmp_path / "after", metrics)
    found = compare("concepts", "mean_f1_sae", "more", 0.02, *sides, HOW)
    assert (found.num_pairs, found.unit) == (3, "concepts")
    assert found.recorded == pytest.approx(0.6)
    assert (found.difference, found.low, found.high) == (pytest.approx(-0.2),) * 3
    assert found.drifted


def test_without_pairs_the_intervals_are_combined(tmp_path: Path) -> None:
    before = Side(tmp_path, {"x": 1.0, "x_low": 0.7, "x_high": 1.3})
    after = Side(tmp_path, {"x": 2.0, "x_low": 1.6, "x_high": 2.5})
    found = compare("probes", "x", "less", 0.1, before, after, HOW)
    assert found.unpaired == "no values of single proteins are kept for this metric"
    assert (found.low, found.high) == (pytest.approx(1 - math.hypot(0.4, 0.3)), pytest.approx(1 + math.hypot(0.5, 0.3)))
    assert found.drifted
    bare = compare("probes", "x", "less", 0.1, Side(tmp_path, {"x": 1.0}), Side(tmp_path, {"x": 1.2}), HOW)
    assert (bare.low, bare.high, bare.drifted) == (None, None, True)


def test_a_version_from_before_tables_were_kept_is_compared_unpaired(tmp_path: Path) -> None:
    found = held(tmp_path, proteins(tmp_path / "after"), "fvu")
    assert found.unpaired == "no 'per_sequence.parquet' was kept when the version was registered"
    old = proteins(tmp_path / "old")
    pd.read_parquet(old / "per_sequence.parquet").drop(columns="variance").to_parquet(old / "per_sequence.parquet")
    assert held(old, tmp_path / "after", "fvu").unpaired == "'per_sequence.parquet' has no column 'variance'"


def test_what_was_not_measured_is_not_compared(tmp_path: Path) -> None:
    found = compare("fidelity", "fvu", "less", 0.02, Side(tmp_path, {}), Side(tmp_path, METRICS), HOW)
    assert not found.drifted
    assert found.text() == "fidelity.fvu: not compared (it was not measured when the version was registered)"
    with pytest.raises(DataError, match=r"'fidelity\.fvu' could not be measured"):
        compare("fidelity", "fvu", "less", 0.02, Side(tmp_path, METRICS), Side(tmp_path, {}), HOW)


def test_damaged_and_undefined_tables_are_data_errors(tmp_path: Path) -> None:
    before = proteins(tmp_path / "before")
    flat = proteins(tmp_path / "flat", variance=0.0)
    with pytest.raises(DataError, match="undefined"):
        held(before, flat, "fvu")
    (flat / "per_sequence.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        held(before, flat, "fvu")


@given(
    value=st.floats(-1, 1),
    below=st.floats(0, 1),
    above=st.floats(0, 1),
    tolerance=st.floats(0, 1),
)
def test_drift_is_beyond_the_tolerance_and_beyond_doubt(
    value: float, below: float, above: float, tolerance: float
) -> None:
    difference = Interval(value, value - below, value + above)
    assert _worse(1.0, difference, tolerance) == (value > tolerance and value - below > 0)
    assert _worse(-1.0, difference, tolerance) == (-value > tolerance and value + above < 0)
    assert not (_worse(1.0, difference, tolerance) and _worse(-1.0, difference, tolerance))
    assert np.isnan(Interval(value, math.nan, math.nan).low)
    assert _worse(1.0, Interval(value, math.nan, math.nan), tolerance) == (value > tolerance)
