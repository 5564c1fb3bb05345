"""Family-specific units (InterProt: Adams et al. 2025; code `compute_family_specificity.py`).

A protein's activation of a unit is its largest over residues, divided by the largest of all proteins. The families
asked about are those of the protein with the largest activation. Proteins are dealt into two random halves; on the
first the threshold (0.3, 0.4 ... 0.9, an activation counts from the threshold on) with the highest F1 is taken, the
lowest of equals; precision, recall and F1 on the second half are reported. A unit is family-specific if F1 is above
0.7. The halves are those of scikit-learn's `train_test_split`, so that seed 42 gives InterProt's.

Two things differ. Where no threshold finds a member, F1 is 0 here; there a threshold of 0 marks every protein. And
where a top protein has several families, a unit counts by the one that is best on the first half; InterProt lists
them all, and its count, any of them above 0.7 on the second half, is given beside (`any_specific`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.binary_scores import threshold_scores
from plmsae.evaluation.bootstrap import Floats, percentile_bounds, resampled_sums
from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.residue_labels import Sparse

THRESHOLDS = np.linspace(0.3, 0.9, 7)
F1_BOUND = 0.7
COLUMNS = (
    "latent",
    "family",
    "top_protein",
    "threshold",
    "f1_first_half",
    "precision",
    "recall",
    "f1",
    "num_members",
    "num_members_second_half",
    "best",
    "specific",
)
_PAIRS_AT_ONCE = 128


def halves(num_proteins: int, seed: int) -> NDArray[np.bool_]:
    """[num_proteins] true for the half that the threshold is chosen on; at least two proteins."""
    from sklearn.model_selection import train_test_split

    first = np.zeros(num_proteins, dtype=bool)
    first[train_test_split(np.arange(num_proteins), test_size=0.5, random_state=seed)[0]] = True
    return first


def family_table(
    maxima: Sparse,
    members: Sparse,
    accessions: NDArray[np.object_],
    families: NDArray[np.object_],
    seed: int,
    *,
    interprot: bool = False,
) -> pd.DataFrame:
    """Threshold and scores of every unit for every family of its top protein.

    Args:
        maxima: [P, n] largest activation of each unit in each protein, in any scale, >= 0.
        members: [P, F] true where a protein belongs to a family.
        accessions: [P] names of the proteins; of equal activations the first counts as the top.
        families: [F] names.
        seed: Seed of the halves.
        interprot: The variant of InterProt's code.

    Returns:
        `COLUMNS`, one row per unit and family. Units without an activation, and those whose top protein has no family,
        have no row.
    """
    columns, by_family, by_protein = maxima.tocsc(), members.tocsc(), members.tocsr()
    columns.sort_indices()
    num_proteins = columns.shape[0]
    first = halves(num_proteins, seed)
    fixed = np.stack([by_family[~first].getnnz(axis=0), by_family[first].getnnz(axis=0)])
    inside = np.zeros(num_proteins, dtype=np.int64)
    rows = []
    for unit in range(columns.shape[1]):
        part = slice(columns.indptr[unit], columns.indptr[unit + 1])
        proteins, values = columns.indices[part], columns.data[part].astype(np.float64)
        if len(values) == 0 or values.max() <= 0:
            continue
        top = int(proteins[np.argmax(values)])
        falling = np.argsort(-values, kind="stable")
        proteins, values = proteins[falling], values[falling]
        # How many of the thresholds mark a protein.
        levels = np.searchsorted(THRESHOLDS, values / values[0], side="right")
        for family in by_protein.indices[by_protein.indptr[top] : by_protein.indptr[top + 1]]:
            own = by_family.indices[by_family.indptr[family] : by_family.indptr[family + 1]]
            inside[own] = 1
            member, size = inside[proteins], fixed[:, family]
            inside[own] = 0
            half = first[proteins]
            if interprot:
                half = first[np.where(member > 0, np.cumsum(member), len(own) + np.cumsum(1 - member)) - 1]
                size = np.bincount(first[: len(own)], minlength=2)
            marked = _above(levels, half, np.ones(len(levels)))
            found = _above(levels, half, member)
            scores = {name: np.nan_to_num(value) for name, value in _scores(found, marked, size).items()}
            place = int(np.argmax(scores["f1"][1]))
            threshold, chosen = THRESHOLDS[place], {name: value[0, place] for name, value in scores.items()}
            if scores["f1"][1, place] == 0:
                threshold, chosen = np.nan, dict.fromkeys(chosen, 0.0)
                if interprot:
                    everything = np.array([(~first).sum(), first.sum()])[:, None]
                    threshold = 0.0
                    chosen = {n: v[0, 0] for n, v in _scores(size[:, None], everything, size).items()}
            rows.append(
                (
                    unit,
                    families[family],
                    accessions[top],
                    threshold,
                    scores["f1"][1, place],
                    chosen["precision"],
                    chosen["recall"],
                    chosen["f1"],
                    int(size.sum()),
                    int(size[0]),
                )
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-2]))
    ranked = table.sort_values(
        ["latent", "f1_first_half", "num_members"], ascending=[True, False, False], kind="stable"
    )
    table["best"] = False
    table.loc[ranked.drop_duplicates("latent").index, "best"] = True
    table["specific"] = table["best"] & (table["f1"] > F1_BOUND)
    return table


def _scores(found: Floats, marked: Floats, size: NDArray[np.int64]) -> dict[str, Floats]:
    """Scores [2, thresholds] of what is marked, and of it found, in halves with so many members."""
    return threshold_scores(found, marked - found, size[:, None] - found, 0)


def _above(levels: NDArray[np.int64], half: NDArray[np.bool_], weights: NDArray[Any]) -> Floats:
    """[2, thresholds] weight of what is marked at each threshold, second half first."""
    width = len(THRESHOLDS) + 1
    counts = np.bincount(half.astype(np.int64) * width + levels, weights=weights, minlength=2 * width).reshape(2, width)
    return np.asarray(np.cumsum(counts[:, ::-1], axis=1)[:, ::-1][:, 1:], dtype=np.float64)


def family_intervals(
    table: pd.DataFrame,
    maxima: Sparse,
    members: Sparse,
    families: NDArray[np.object_],
    seed: int,
    how: Resampling,
) -> tuple[Floats, Floats]:
    """Bounds of the second half's F1 of some rows of `family_table`, by a bootstrap over its proteins.

    Args:
        table: Rows with a threshold.
        maxima: As in `family_table`.
        members: As in `family_table`.
        families: As in `family_table`.
        seed: As in `family_table`.
        how: Resamples.
    """
    second = np.flatnonzero(~halves(maxima.shape[0], seed))
    columns, belongs = maxima.tocsc(), members.tocsc()
    number = {name: place for place, name in enumerate(families)}
    low, high = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for start in range(0, len(table), _PAIRS_AT_ONCE):
        part = table.iloc[start : start + _PAIRS_AT_ONCE]
        x = columns[:, part["latent"].to_numpy()]
        highest = np.maximum(x.max(axis=0).toarray()[0].astype(np.float64), np.finfo(float).tiny)
        marked = x[second].toarray().astype(np.float64) / highest >= part["threshold"].to_numpy()
        member = belongs[:, [number[name] for name in part["family"]]][second].toarray() > 0
        counts = np.stack([marked & member, marked & ~member, ~marked & member], axis=1).astype(np.int64)
        tp, fp, fn = np.moveaxis(resampled_sums(counts, how.num_resamples, how.seed), 1, 0)
        f1 = threshold_scores(tp, fp, fn, 0)["f1"]
        place = slice(start, start + len(part))
        low[place], high[place] = percentile_bounds(f1, how.confidence)
    return low, high
