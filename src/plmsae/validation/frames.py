"""The tables as the suites look at them: with columns that hold the facts which span rows or tables.

A null in such a column means that the fact does not concern the row. Positions shown to people count from 1.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from plmsae.proteins.records import OTHER_RESIDUES, STANDARD_RESIDUES
from plmsae.proteins.split import SPLITS

_ILLEGAL = re.compile(f"[^{STANDARD_RESIDUES}{OTHER_RESIDUES}]")


def sequence_frame(sequences: pd.DataFrame) -> pd.DataFrame:
    """`sequences.parquet` and, per row:

    `num_letters` of the sequence; `illegal_letter`, e.g. `J at 3`, else null; `cluster_is_a_protein`;
    `num_splits_of_cluster`, `num_splits_of_sequence`, `num_clusters_of_protein`; `unknown_fraction`, the fraction of X.
    """
    frame = sequences.copy()
    frame["num_letters"] = frame["sequence"].str.len()
    found = [_ILLEGAL.search(text) if isinstance(text, str) else None for text in frame["sequence"]]
    frame["illegal_letter"] = pd.Series(
        [f"{match.group()} at {match.start() + 1}" if match else None for match in found],
        index=frame.index,
        dtype=object,
    )
    frame["cluster_is_a_protein"] = frame["cluster"].isin(frame["accession"])
    for column, of, counted in (
        ("num_splits_of_cluster", "cluster", "split"),
        ("num_splits_of_sequence", "sequence", "split"),
        ("num_clusters_of_protein", "accession", "cluster"),
    ):
        frame[column] = frame.groupby(of, dropna=False)[counted].transform("nunique")
    frame["unknown_fraction"] = frame["sequence"].str.count("X") / frame["num_letters"].clip(lower=1)
    return frame


def annotation_frame(annotations: pd.DataFrame, sequences: pd.DataFrame) -> pd.DataFrame:
    """`annotations.parquet` and, per row:

    `position` for people, in the source protein, from 1; `row_length` of its sequence, null if there is none;
    `has_sequence`; and the facts about residues: `disulfide_ends` (letters at both ends), `signal_start` (first
    residue, from 1), `phospho_residue` (`Phosphoserine on S`), `n_linked_residue` (letter), `initiator` (`M1`).
    """
    rows = sequences.drop_duplicates(["accession", "offset"]).set_index(["accession", "offset"])["sequence"]
    frame = annotations.copy()
    keys = pd.MultiIndex.from_frame(frame[["accession", "offset"]])
    sequence = pd.Series(rows.reindex(keys).to_numpy(dtype=object), index=frame.index, dtype=object)
    known = sequence.notna()
    frame["has_sequence"] = known
    frame["row_length"] = sequence.str.len().astype("Int64") if len(frame) else pd.Series(dtype="Int64")
    first, last = frame["offset"] + frame["start"] + 1, frame["offset"] + frame["end"]
    frame["position"] = (first.astype(str) + ".." + last.astype(str)).where(first != last, first.astype(str))
    inside = known & (frame["start"] >= 0) & (frame["end"] > frame["start"]) & (frame["end"] <= frame["row_length"])
    inside = inside.fillna(False).astype(bool)

    def letters(mask: pd.Series, positions: pd.Series) -> list[str]:
        return [text[place] for text, place in zip(sequence[mask], positions[mask], strict=True)]

    def facts(mask: pd.Series, values: list[object] | pd.Series) -> pd.Series:
        column = pd.Series(None, index=frame.index, dtype=object)
        column[mask] = np.asarray(values, dtype=object)
        return column

    kind, note = frame["type"], frame["note"].fillna("")
    starts, ends = frame["start"], frame["end"] - 1

    bonds = inside & (kind == "Disulfide bond")
    frame["disulfide_ends"] = facts(
        bonds, [a + b for a, b in zip(letters(bonds, starts), letters(bonds, ends), strict=True)]
    )
    signals = inside & (kind == "Signal peptide") & (frame["offset"] == 0)
    frame["signal_start"] = facts(signals, starts[signals] + 1).astype("Int64")
    phospho = inside & (kind == "Modified residue") & note.str.match(r"Phospho(?:serine|threonine|tyrosine)\b")
    named = note[phospho].str.extract(r"^(Phospho\w+)")[0]
    frame["phospho_residue"] = facts(
        phospho, [f"{name} on {letter}" for name, letter in zip(named, letters(phospho, starts), strict=True)]
    )
    linked = inside & (kind == "Glycosylation") & note.str.startswith("N-linked (GlcNAc")
    frame["n_linked_residue"] = facts(linked, list(letters(linked, starts)))
    initiators = inside & (kind == "Initiator methionine")
    frame["initiator"] = facts(
        initiators,
        [f"{letter}{place}" for letter, place in zip(letters(initiators, starts), first[initiators], strict=True)],
    )
    return frame


def split_frame(sequences: pd.DataFrame, *, valid_fraction: float, test_fraction: float) -> pd.DataFrame:
    """One row per split: `num_proteins`, `num_clusters`, `cluster_fraction` and the bounds it should lie in.

    Clusters are assigned independently, so their number in a split is binomial; the bounds `low` and `high` are five
    standard deviations from the expected fraction.
    """
    expected = {"train": 1.0 - valid_fraction - test_fraction, "valid": valid_fraction, "test": test_fraction}
    num_clusters = sequences["cluster"].nunique()
    rows = []
    for split in SPLITS:
        part = sequences[sequences["split"] == split]
        fraction = part["cluster"].nunique() / max(num_clusters, 1)
        spread = 5.0 * float(np.sqrt(expected[split] * (1.0 - expected[split]) / max(num_clusters, 1)))
        rows.append(
            {
                "split": split,
                "num_proteins": part["accession"].nunique(),
                "num_clusters": part["cluster"].nunique(),
                "cluster_fraction": fraction,
                "low": expected[split] - spread,
                "high": expected[split] + spread,
            }
        )
    return pd.DataFrame(rows)
