"""InterPLM's scores of counts, its selection on validation and its report, as its released code makes them.

Source: Simon & Zou 2024; `prepare_eval_set.py`, `calculate_f1.py` and `report_metrics.py` of
https://github.com/ElanaPearl/InterPLM, commit 5f4cbf9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from plmsae.evaluation.counts import Counts
from plmsae.evaluation.interplm_labels import NOT_EVALUATED, per_residue
from plmsae.evaluation.residue_labels import Labels, Sparse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SCORE_COLUMNS = ("precision", "recall", "recall_per_domain", "f1", "f1_per_domain", "tp", "fp", "tp_per_domain")
TABLE_COLUMNS = ("concept", "feature", "threshold_pct", *SCORE_COLUMNS, "is_aa_level_concept")
_ALMOST = 1e-12  # scores nearer than this may change places when they are written as text and read back
_DIGITS = 17


@dataclass(frozen=True)
class EvaluationSet:
    """The labels of one evaluation set, for C concepts.

    Attributes:
        names: The concepts.
        num_residues: [C] labelled residues.
        num_domains: [C] sum over shards of the highest number of an annotation: also annotations without a residue
            of their own count.
        labels: Residues of all concepts; annotations that have residues of their own, of those concepts whose recall
            counts domains.
    """

    names: tuple[str, ...]
    num_residues: Ints
    num_domains: Ints
    labels: Labels

    @property
    def per_residue(self) -> NDArray[np.bool_]:
        """[C] true where recall counts residues."""
        return np.array([per_residue(name) for name in self.names], dtype=bool)

    @classmethod
    def build(cls, names: Sequence[str], shards: Sequence[Sparse], lengths: Sequence[int]) -> EvaluationSet:
        """Join the shards of a set.

        Args:
            names: [C] concepts.
            shards: [R, C] labels of each shard (`interplm_labels.label_values`).
            lengths: Residues of each protein, shard after shard.
        """
        row_starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])
        values = sparse.coo_matrix(sparse.vstack(shards))
        by_domain = np.array([not per_residue(name) for name in names], dtype=bool)[values.col]
        rows, concepts = values.row.astype(np.int64)[by_domain], values.col.astype(np.int64)[by_domain]
        # Within a protein a number of a concept is an annotation: a shard gives each number to one protein.
        places = (np.searchsorted(row_starts, rows, side="right") - 1) * len(names) + concepts
        numbers = int(values.data.max(initial=0)) + 1
        unique, instance = np.unique(places * numbers + values.data[by_domain], return_inverse=True)
        proteins, of = np.divmod(unique // numbers, max(len(names), 1))
        ones = np.ones(len(rows), dtype=np.int32)
        residues = sparse.csr_matrix(values)
        residues.data = np.ones_like(residues.data)
        labels = Labels(
            residues=residues,
            annotations=sparse.csr_matrix((ones, (instance, rows)), shape=(len(unique), int(row_starts[-1]))),
            membership=sparse.csr_matrix(
                (ones[: len(unique)], (of, np.arange(len(unique)))), shape=(len(names), len(unique))
            ),
            row_starts=row_starts,
            annotation_starts=np.searchsorted(proteins, np.arange(len(row_starts))),
        )
        highest = [shard.max(axis=0).toarray().reshape(-1).astype(np.int64) for shard in shards]
        num_domains = np.stack(highest).sum(axis=0)
        return cls(tuple(names), np.bincount(values.col, minlength=len(names)), num_domains, labels)


def evaluated(
    names: Sequence[str], sets: Sequence[Sequence[Sparse]], *, min_residues: int, min_domains: int
) -> NDArray[np.int64]:
    """Concepts that are scored: with more residues or more domains than asked for, in all sets together.

    Args:
        names: [C] concepts.
        sets: Shards of every set, [R, C] labels each.
        min_residues: A concept with more labelled residues is scored.
        min_domains: One with more domains, too.
    """
    num_residues, num_domains = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    for shards in sets:
        for shard in shards:
            num_residues += np.bincount(sparse.csr_matrix(shard).indices, minlength=len(names))
            num_domains += shard.max(axis=0).toarray().reshape(-1).astype(np.int64)
    many = (num_residues > min_residues) | (num_domains > min_domains)
    return np.flatnonzero(many & np.array([name not in NOT_EVALUATED for name in names]))


def concept_scores(counts: Counts, found: EvaluationSet, concept: int) -> dict[str, Floats]:
    """`SCORE_COLUMNS` of one concept, [n, T] each, NaN in the four ratios where no labelled residue is found."""
    by_residue = bool(found.per_residue[concept])
    tp = counts.true_positives[concept].T.astype(np.float64)
    fp = counts.active.T - tp
    hits = np.zeros_like(tp) if by_residue else counts.hits[concept].T.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        some = np.where(tp > 0, 1.0, np.nan)
        precision = some * tp / (tp + fp)
        recall = some * tp / found.num_residues[concept]
        by_domain = recall if by_residue else some * hits / found.num_domains[concept]
        f1 = 2 * precision * recall / (precision + recall)
        f1_by_domain = 2 * precision * by_domain / (precision + by_domain)
    columns = (precision, recall, by_domain, f1, f1_by_domain, tp, fp, hits)
    return dict(zip(SCORE_COLUMNS, columns, strict=True))


def score_tables(counts: Counts, found: EvaluationSet, thresholds: Sequence[float]) -> Iterator[pd.DataFrame]:
    """InterPLM's table of scores, one concept after the other: `TABLE_COLUMNS`, no row without a true positive."""
    for concept, name in enumerate(found.names):
        scores = concept_scores(counts, found, concept)
        feature, level = np.nonzero(scores["tp"])
        values = {column: score[feature, level] for column, score in scores.items()}
        yield _table(name, feature, np.asarray(thresholds)[level], values, bool(found.per_residue[concept]))


def _table(
    name: str, feature: Ints, thresholds: Floats, values: Mapping[str, Floats], by_residue: bool
) -> pd.DataFrame:
    columns: dict[str, Any] = {"concept": name, "feature": feature, "threshold_pct": thresholds, **values}
    return pd.DataFrame(columns | {"is_aa_level_concept": by_residue}, columns=list(TABLE_COLUMNS))


@dataclass(frozen=True)
class Report:
    """What InterPLM reports.

    Attributes:
        best: The selected feature of each concept on test, at its best threshold there. `TABLE_COLUMNS`.
        pairs: Pairs above the bound on both sets, each at its best threshold on test. `TABLE_COLUMNS`.
        num_features: Features with a true positive of a concept that is reported on, on validation.
        num_concepts: Such concepts.
    """

    best: pd.DataFrame
    pairs: pd.DataFrame
    num_features: int
    num_concepts: int

    @property
    def metrics(self) -> dict[str, float | int]:
        """The three numbers that it prints, and what they are of; the mean is left out where it is of nothing."""
        numbers: dict[str, float | int] = {
            "num_features_compared": self.num_features,
            "num_concepts_compared": self.num_concepts,
            "num_concepts_in_mean": len(self.best),
            "num_concepts_identified": int(self.pairs["concept"].nunique()),
            "num_features_with_concept": int(self.pairs["feature"].nunique()),
            "num_pairs": len(self.pairs),
        }
        if len(self.best):
            numbers["average_best_f1"] = float(self.best["f1_per_domain"].mean())
        return numbers


def report(
    valid: tuple[Counts, EvaluationSet],
    test: tuple[Counts, EvaluationSet],
    thresholds: Sequence[float],
    bound: float = 0.5,
) -> Report:
    """Select on validation, report on test.

    Validation selects a feature, not its threshold: on test the best threshold counts. A feature without a true
    positive on test is left out with its concept.

    Args:
        valid: Counts and labels that features are selected on.
        test: Counts and labels of the same concepts that they are reported on.
        thresholds: Ascending thresholds that both were counted at.
        bound: F1 above which a feature has a concept.
    """
    best, pairs, features, num_concepts = [], [], np.zeros(valid[0].active.shape[1], dtype=bool), 0
    for concept, name in enumerate(valid[1].names):
        # Letters are scored, but not reported on.
        if "amino_acid" in name.lower():
            continue
        on_valid, on_test = (concept_scores(*each, concept) for each in (valid, test))
        seen = on_valid["tp"].any(axis=1)
        if not seen.any():
            continue
        features |= seen
        num_concepts += 1
        by_residue = bool(test[1].per_residue[concept])
        rows = _best_rows(on_valid, None)
        best.append((name, on_test, _best_rows(on_test, rows[:1, 0]), by_residue))
        above = np.flatnonzero(_read_back_above(on_valid["f1_per_domain"], bound).any(axis=1))
        chosen = [_best_rows(on_test, above[number : number + 1]) for number in range(len(above))]
        places = np.concatenate([np.zeros((0, 2), dtype=np.int64), *chosen])
        places = places[_read_back_above(on_test["f1_per_domain"], bound)[places[:, 0], places[:, 1]]]
        pairs.append((name, on_test, places, by_residue))
    return Report(_joined(best, thresholds), _joined(pairs, thresholds), int(features.sum()), num_concepts)


def _best_rows(scores: Mapping[str, Floats], features: Ints | None) -> Ints:
    """[1 or 0, 2] feature and threshold of the highest F1 per domain, then plain F1, then the first of the table."""
    allowed = np.full(scores["f1"].shape, -np.inf)
    which = slice(None) if features is None else features
    allowed[which] = np.nan_to_num(scores["f1_per_domain"][which], nan=-np.inf)
    if not np.isfinite(allowed).any():
        return np.zeros((0, 2), dtype=np.int64)
    places = np.argwhere(allowed >= allowed.max() - _ALMOST)
    first, second = (read_back(scores[name][places[:, 0], places[:, 1]]) for name in ("f1_per_domain", "f1"))
    return places[np.lexsort((np.arange(len(places)), -second, -first))[:1]]


def read_back(values: Floats) -> Floats:
    """Numbers as they come back from a CSV file, which is where InterPLM's report takes them from.

    The pandas that it pins (2.2.3) reads 17 digits, the zeros in front included, and drops the rest: the last bits
    change, and with them which of two features with equal F1 is the better one.
    """
    return np.array([_parsed(repr(value)) for value in values.tolist()], dtype=np.float64)


def _parsed(text: str) -> float:
    mantissa, _, power = text.partition("e")
    whole, _, decimals = mantissa.partition(".")
    number = 0.0
    for digit in (whole + decimals)[:_DIGITS]:
        number = number * 10.0 + int(digit)
    exponent = int(power or 0) - min(len(decimals), _DIGITS - len(whole))
    return number / float(f"1e{-exponent}")


def _read_back_above(values: Floats, bound: float) -> NDArray[np.bool_]:
    """Where a number is above the bound once it was read back."""
    above = values > bound
    near = np.abs(values - bound) < _ALMOST
    if near.any():
        above[near] = read_back(values[near]) > bound
    return np.asarray(above)


def _joined(parts: Sequence[tuple[str, Mapping[str, Floats], Ints, bool]], thresholds: Sequence[float]) -> pd.DataFrame:
    """One table of chosen rows, from the highest F1 per domain and plain F1 to the lowest."""
    tables = [
        _table(
            name,
            places[:, 0],
            np.asarray(thresholds)[places[:, 1]],
            {column: score[places[:, 0], places[:, 1]] for column, score in scores.items()},
            by_residue,
        )
        for name, scores, places, by_residue in parts
        if len(places)
    ]
    if not tables:
        return pd.DataFrame(columns=list(TABLE_COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    for column in ("precision", "recall", "recall_per_domain", "f1", "f1_per_domain"):
        table[column] = read_back(table[column].to_numpy())
    return table.sort_values(["f1_per_domain", "f1"], ascending=False, kind="stable", ignore_index=True)
