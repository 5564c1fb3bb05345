"""The tables of a steering run; positions are 1-based UniProt positions and come with the residue's letter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.steering.measure import AMINO_ACIDS
from plmsae.steering.statistics import Estimate

LETTERS = np.array(list(AMINO_ACIDS))


def write_tables(residues: pd.DataFrame, found: dict[str, Estimate], output: Path, num_top: int) -> None:
    """Write `residues.parquet`, `top_residues.csv`, `substitutions.csv` and `amino_acids.csv`.

    Args:
        residues: One row per residue, by accession and position.
        found: As `statistics.estimates` gives them.
        output: The folder.
        num_top: Rows of `top_residues.csv`, the residues whose prediction changed most by KL.
    """
    residues.to_parquet(output / "residues.parquet", index=False)
    order = np.argsort(-residues["kl"].to_numpy(), kind="stable")[:num_top]
    _csv(residues.iloc[order], output / "top_residues.csv")
    _csv(substitutions(residues), output / "substitutions.csv")
    _csv(amino_acids(residues, found), output / "amino_acids.csv")


def substitutions(residues: pd.DataFrame) -> pd.DataFrame:
    """How often the predicted residue changed from which letter to which, most frequent first."""
    changed = residues[residues["predicted_before"] != residues["predicted_after"]]
    pairs = ["predicted_before", "predicted_after"]
    counts = changed.groupby(pairs).size().rename("num_residues").reset_index()
    return counts.sort_values(["num_residues", *pairs], ascending=[False, True, True]).reset_index(drop=True)


def amino_acids(residues: pd.DataFrame, found: dict[str, Estimate]) -> pd.DataFrame:
    """Mean probability of each amino acid, how it changed with its interval, and how the controls changed it."""
    columns = {"amino_acid": LETTERS, "probability_before": found["clean"].value}
    for name, column in (
        ("probability", "change"),
        ("random_probability", "random_change"),
        ("excess_probability", "excess_change"),
    ):
        estimate = found[name]
        columns |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
    for when in ("before", "after"):
        predicted = residues[f"predicted_{when}"].to_numpy(dtype=str)
        columns[f"num_predicted_{when}"] = np.array([(predicted == letter).sum() for letter in AMINO_ACIDS])
    return pd.DataFrame(columns)


def _csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
