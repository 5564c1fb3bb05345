"""Rows that are not finite in the stored type: refused by name, or left out and counted.

The realistic case is float16, which ends at 65504: single dimensions of large protein language models exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from torch import Tensor

from plmsae.errors import DataError

Policy = Literal["refuse", "mask"]
TABLE = "masked.csv"
NUM_NAMED = 3


@dataclass(frozen=True)
class NonFinite:
    """The rows of one sequence that are not finite.

    Attributes:
        accession: The protein.
        residue: Position of the first of them in the protein, 1-based.
        count: How many there are.
        num_residues: Rows of the sequence in all.
        largest: Largest magnitude that the model gave in the first of them; None if the model's values are not finite.
    """

    accession: str
    residue: int
    count: int
    num_residues: int
    largest: float | None


def find_non_finite(
    hidden: Tensor, finite: Tensor, accessions: Sequence[str], offsets: Sequence[int], lengths: Sequence[int]
) -> list[NonFinite]:
    """The sequences of a batch that have rows which are not finite, in order.

    Args:
        hidden: fp32 [sum of the lengths, d], as the model gave them.
        finite: bool [sum of the lengths], which rows are finite in the stored type.
        accessions: Protein of each sequence.
        offsets: 0-based position of its first residue in the protein.
        lengths: Its number of residues.
    """
    found, start = [], 0
    for accession, offset, length in zip(accessions, offsets, lengths, strict=True):
        bad = (~finite[start : start + length]).nonzero().flatten()
        if len(bad):
            first = int(bad[0])
            largest = float(hidden[start + first].abs().max())
            overflow = largest if math.isfinite(largest) else None
            found.append(NonFinite(accession, offset + first + 1, len(bad), length, overflow))
        start += length
    return found


def refusal(first: NonFinite, *, layer: int, plm: str, dtype: str) -> DataError:
    """The error of the policy `refuse`, for the first sequence that is not finite."""
    overflow = first.largest is not None
    return DataError(
        f"layer {layer} of '{plm}' gives values that are not finite"
        + (f" in {dtype} (largest: {first.largest:.4g})" if overflow else "")
        + f" on {first.count} of {first.num_residues} residues",
        where=f"{first.accession}, residue {first.residue}",
        fix=("store as bfloat16 or float32" if overflow else "drop the protein, or check the model's weights")
        + ", or leave such residues out: extract_activations.non_finite: mask",
    )


def write_masked(folder: Path, masked: Mapping[str, Sequence[NonFinite]]) -> None:
    """Write `masked.csv`: split -> what was left out of it, the worst first; no file where nothing was."""
    rows = [
        {"split": split, **{name: value for name, value in asdict(one).items() if name != "largest"}}
        for split, found in masked.items()
        for one in sorted(found, key=lambda one: (-one.count, one.accession, one.residue))
    ]
    if rows:
        pd.DataFrame(rows).rename(columns={"residue": "first_residue", "count": "num_masked"}).to_csv(
            folder / TABLE, index=False, lineterminator="\n"
        )


def describe_masked(folder: Path) -> str:
    """What `masked.csv` of a store says, in a sentence with the worst proteins; empty where nothing was left out."""
    if not (folder / TABLE).is_file():
        return ""
    table = pd.read_csv(folder / TABLE, keep_default_na=False)  # no accession is a missing value
    counts = table.groupby("accession")["num_masked"].sum()
    worst = counts.sort_index().sort_values(ascending=False, kind="stable").head(NUM_NAMED)
    named = ", ".join(f"{accession} ({count:,})" for accession, count in worst.items())
    by_split = ", ".join(f"{count:,} {split}" for split, count in table.groupby("split")["num_masked"].sum().items())
    return (
        f"{int(counts.sum()):,} residues of {len(counts):,} proteins were not finite in the stored type and are left "
        f"out ({by_split}); most of {named}."
    )
