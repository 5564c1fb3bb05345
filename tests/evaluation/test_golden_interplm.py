"""Our InterPLM numbers against those of InterPLM's own code (scripts/golden_interplm_concepts.py wrote the file)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from plmsae.evaluation.counts import ConceptCounter, Counts
from plmsae.evaluation.interplm_labels import COLUMNS, concept_names, label_values, preprocessed, subtypes
from plmsae.evaluation.interplm_scores import EvaluationSet, Report, evaluated, report, score_tables
from plmsae.evaluation.residue_labels import Sparse
from scripts.golden_interplm_concepts import EMPTY, real_activations
from tests.workspace import FIXTURE

GOLDEN = json.loads(Path(__file__).with_name("golden_interplm.json").read_text())
THRESHOLDS = [0.0, 0.15, 0.5, 0.6, 0.8]
NUMBERS = ("precision", "recall", "recall_per_domain", "f1", "f1_per_domain", "tp", "fp", "tp_per_domain")
ROW = ("feature", "threshold_pct", "tp", "fp", "tp_per_domain", "f1", "f1_per_domain")


class Run:
    """From a table and activations to everything that InterPLM reports.

    Args:
        shards: Proteins of each shard.
        activations: [R, n] fp32 of each shard.
        settings: What its scripts were run with.
        sets: The shards of validation and of test.
    """

    def __init__(
        self,
        shards: Sequence[pd.DataFrame],
        activations: Sequence[np.ndarray],
        settings: dict[str, Any],
        sets: Sequence[Sequence[int]],
    ) -> None:
        options = subtypes(pd.concat(shards), settings["min_required_instances"])
        self.every = concept_names(options)
        self.labels: list[Sparse] = [label_values(shard, options) for shard in shards]
        kept = evaluated(
            self.every,
            [[self.labels[shard] for shard in of] for of in sets],
            min_residues=settings["min_aa"],
            min_domains=settings["min_domains"],
        )
        self.names = [self.every[number] for number in kept]
        self.sets, self.counts = [], []
        for of in sets:
            lengths = pd.concat([shards[shard] for shard in of])["Sequence"].str.len().to_numpy()
            self.sets.append(EvaluationSet.build(self.names, [self.labels[shard][:, kept] for shard in of], lengths))
            dense = np.concatenate([activations[shard] for shard in of])
            self.counts.append(self._count(dense, self.sets[-1]))
        valid, test = zip(self.counts, self.sets, strict=True)
        self.report: Report = report(valid, test, THRESHOLDS, settings["bound"])

    def _count(self, dense: np.ndarray, found: EvaluationSet) -> Counts:
        """In batches of three proteins, as a stream."""
        labels = found.labels
        counter = ConceptCounter(labels.num_concepts, dense.shape[1], THRESHOLDS)
        for first in range(0, labels.num_rows, 3):
            last = min(first + 3, labels.num_rows)
            rows = slice(labels.row_starts[first], labels.row_starts[last])
            counter.add(sparse.csr_matrix(dense[rows]), labels.batch(first, last))
        return counter.result()

    def table(self, number: int) -> pd.DataFrame:
        """The scores of validation (0) or test (1)."""
        return pd.concat(score_tables(self.counts[number], self.sets[number], THRESHOLDS), ignore_index=True)


@pytest.fixture(scope="module")
def made_up() -> Run:
    golden = GOLDEN["made_up"]
    table = pd.DataFrame(golden["table"])
    table[list(COLUMNS)] = table[list(COLUMNS)].astype(object)
    shards = preprocessed(table, len(golden["shards"]))
    activations = []
    for shard, features in zip(shards, golden["activations"], strict=True):
        dense = np.zeros((int(shard["Length"].sum()), golden["num_features"]), dtype=np.float32)
        for feature, marks in enumerate(features):
            for residue, level in marks:
                dense[residue, feature] = golden["levels"][level]
        activations.append(dense)
    return Run(shards, activations, golden["settings"], [(0, 1), (2, 3)])


@pytest.fixture(scope="module")
def real() -> Run:
    table = pd.read_csv(FIXTURE, sep="\t", dtype=dict.fromkeys(COLUMNS, object))
    table[list(EMPTY)] = None
    shards = preprocessed(table, 2)
    activations = [np.concatenate([real_activations(one) for one in shard["Sequence"]]) for shard in shards]
    return Run(shards, activations, GOLDEN["real"]["settings"], [(0,), (1,)])


def test_the_shards_have_the_same_proteins() -> None:
    golden = GOLDEN["made_up"]
    shards = preprocessed(pd.DataFrame(golden["table"]), len(golden["shards"]))
    assert [shard["Entry"].tolist() for shard in shards] == golden["shards"]


def test_the_same_concepts_are_listed(made_up: Run) -> None:
    assert sorted(made_up.every) == GOLDEN["made_up"]["columns"]


def test_every_label_is_the_same(made_up: Run) -> None:
    for ours, theirs in zip(made_up.labels, GOLDEN["made_up"]["labels"], strict=True):
        dense = ours.toarray().astype(int)
        places = np.arange(1, len(dense) + 1)
        marks = {
            name: [int((of > 0).sum()), int(of.max()), int((of * places).sum())]
            for name, of in zip(made_up.every, dense.T, strict=True)
            if of.any()
        }
        assert marks == theirs


@pytest.mark.parametrize("which", ["made_up", "real"])
def test_the_same_concepts_have_the_same_totals(which: str, request: pytest.FixtureRequest) -> None:
    run, golden = request.getfixturevalue(which), GOLDEN[which]
    order = [run.names.index(name) for name in golden["concepts"]]
    assert sorted(order) == list(range(len(run.names)))
    for name, found in zip(("valid", "test"), run.sets, strict=True):
        assert found.num_residues[order].tolist() == golden[f"num_aa_{name}"]
        assert found.num_domains[order].tolist() == golden[f"num_domains_{name}"]


def rows_of(table: pd.DataFrame) -> list[list[Any]]:
    places = {name: number for number, name in enumerate(GOLDEN["made_up"]["concepts"])}
    return [[places[row.concept], *(getattr(row, name) for name in ROW)] for row in table.itertuples()]


@pytest.mark.parametrize(("number", "name"), enumerate(["valid", "test"]))
def test_every_score_of_the_made_up_proteins_is_equal(number: int, name: str, made_up: Run) -> None:
    ours = sorted(rows_of(made_up.table(number)))
    theirs = sorted(GOLDEN["made_up"][name])
    assert len(theirs) > 300
    assert ours == theirs


@pytest.mark.parametrize(("number", "name"), enumerate(["valid", "test"]))
def test_all_scores_of_real_proteins_are_equal(number: int, name: str, real: Run) -> None:
    golden = GOLDEN["real"]
    places = {concept: place for place, concept in enumerate(golden["concepts"])}
    table = real.table(number)
    assert len(table) == golden[name]["rows"] > 3000
    weights = np.cos(table["concept"].map(places) * 1.7 + table["feature"] * 0.37 + table["threshold_pct"] * 3.1)
    for column in NUMBERS:
        assert math.fsum(weights * table[column]) == pytest.approx(golden[name][column], rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("which", ["made_up", "real"])
@pytest.mark.parametrize("name", ["best", "pairs"])
def test_the_reported_tables_are_equal(which: str, name: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which).report
    concepts = GOLDEN[which]["concepts"]
    table = getattr(found, name)
    ours = [[concepts.index(row.concept), *(getattr(row, column) for column in ROW)] for row in table.itertuples()]
    assert len(ours) > 3
    assert sorted(ours) == sorted(GOLDEN[which][name])
    scores = [row[-1] for row in ours]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("which", ["made_up", "real"])
def test_the_printed_numbers_are_equal(which: str, request: pytest.FixtureRequest) -> None:
    metrics = request.getfixturevalue(which).report.metrics
    golden = GOLDEN[which]
    assert metrics["average_best_f1"] == pytest.approx(golden["average_best_f1"], rel=1e-14)
    assert golden["printed"] == [
        f"Average best F1 per concept in test set: {metrics['average_best_f1']:.3f}",
        f"Number of concepts identified: {metrics['num_concepts_identified']}",
        f"Number of features associated with a concept: {metrics['num_features_with_concept']}",
    ]


def test_the_made_up_proteins_show_the_defects(made_up: Run) -> None:
    """Otherwise the comparison would prove less than it says."""
    best, metrics = made_up.report.best, made_up.report.metrics
    # A concept that validation found and test does not have drops out of the mean.
    assert metrics["num_concepts_in_mean"] < metrics["num_concepts_compared"]
    # Erased annotations stay in the denominator.
    found = made_up.sets[0]
    erased = found.num_domains - found.labels.num_instances_of()
    assert (erased[~found.per_residue] > 0).any()
    # The threshold that test reports is not the one that validation would have chosen.
    valid = made_up.table(0).sort_values(["f1_per_domain", "f1"], ascending=False, kind="stable")
    chosen = valid.drop_duplicates("concept").set_index("concept")["threshold_pct"]
    assert (best.set_index("concept")["threshold_pct"] != chosen[best["concept"]].set_axis(best["concept"])).any()
