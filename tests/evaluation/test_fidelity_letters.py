"""Fidelity by amino acid, of losses that are written out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from plmsae.evaluation.fidelity_letters import COLUMNS, by_amino_acid
from plmsae.evaluation.fidelity_quantities import loss_names
from tests.evaluation.conftest import LETTERS

INTERVENTIONS = ("clean", "sae", "zero", "mean", "random")
A, C = LETTERS.index("A"), LETTERS.index("C")


def table(owners: list[int], seed: int = 0) -> pd.DataFrame:
    """Three sequences: 2 A and 1 C; 3 A; 4 C."""
    sums = {f"masked_{name}": np.zeros((3, 20)) for name in ("num", *loss_names(INTERVENTIONS))}
    sums["masked_num"][[0, 0, 1, 2], [A, C, A, C]] = [2, 1, 3, 4]
    for name, per_residue in (("clean", (1, 2, 1, 2)), ("sae", (1.5, 3, 2, 2)), ("mean", (3, 4, 3, 4))):
        counts = sums["masked_num"][[0, 0, 1, 2], [A, C, A, C]]
        sums[f"masked_ce_{name}"][[0, 0, 1, 2], [A, C, A, C]] = counts * np.array(per_residue)
    found = by_amino_acid(
        sums, np.array(owners), ("masked",), INTERVENTIONS, num_resamples=400, confidence=0.9, seed=seed
    )
    assert list(found.columns) == list(COLUMNS)
    assert len(found) == 20 * found["quantity"].nunique()
    return found.set_index(["amino_acid", "quantity"])


def test_letters_by_hand() -> None:
    found = table([0, 1, 2])
    assert found.loc[("A", "ce_sae"), ["num_residues", "num_proteins"]].tolist() == [5, 2]
    assert found.loc[("C", "ce_sae"), ["num_residues", "num_proteins"]].tolist() == [5, 2]
    assert found.loc[("A", "ce_sae"), "value"] == pytest.approx((2 * 1.5 + 3 * 2) / 5)
    assert found.loc[("A", "delta_ce_sae"), "value"] == pytest.approx(0.8)
    assert found.loc[("C", "delta_ce_sae"), "value"] == pytest.approx(0.2)
    assert found.loc[("A", "loss_recovered_mean"), "value"] == pytest.approx(100 * (3 - 1.8) / 2)
    # The extremes of A are either protein alone: 0.5 and 1.
    assert found.loc[("A", "delta_ce_sae"), ["low", "high"]].tolist() == pytest.approx([0.5, 1.0])
    absent = found.loc["W"]
    assert (absent[["num_residues", "num_proteins"]] == 0).all().all()
    assert absent[["value", "low", "high"]].isna().all().all()


def test_windows_of_a_protein_are_resampled_together() -> None:
    found = table([0, 0, 0])
    row = found.loc[("A", "delta_ce_sae")]
    assert row["num_proteins"] == 1
    assert row["low"] == pytest.approx(row["value"]) == row["high"]


def test_intervals_are_of_the_seed() -> None:
    pd.testing.assert_frame_equal(table([0, 1, 2]), table([0, 1, 2]))
