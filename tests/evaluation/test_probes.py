"""Probes end to end on the bundled model: units that are letters, real annotations, and what a user labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.probe_features import letter_matrix, pooled, unit_names
from plmsae.evaluation.probe_fits import Probes, Settings
from plmsae.evaluation.probes import evaluate
from plmsae.evaluation.residue_letters import LETTERS
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import read_sequences
from tests.evaluation.conftest import letter_sae, random_sae

SETTINGS = Settings(1.0, (0.1, 1.0), "l2", "maximum", "f1", 10_000, 1, 0)


def run(inputs: Inputs, output: Path, **changed: Any) -> tuple[Outcome, pd.DataFrame]:
    given: dict[str, Any] = {
        "tasks": ["secondary_structure"], "labels": None, "unlisted": "negative", "max_proteins": 12,
        "min_positives": 5, "min_proteins": 2, "fit_residues": 1000, "all_unit_examples": 200, "strength": 1.0,
        "strengths": [0.01, 0.1], "penalty": "l2", "scale": "maximum", "criterion": "f1", "window": 2,
        "units_per_class": 3, "num_resamples": 30, "confidence": 0.95, "max_tokens": 2048, "threads": 1, "seed": 0,
    }  # fmt: skip
    output.mkdir(exist_ok=True)
    outcome = evaluate(inputs, output, **(given | changed))
    return outcome, pd.read_parquet(output / "probes.parquet")


def inputs_of(plm: ProteinLM, sequences: Path, store: Path, sae: Any) -> Inputs:
    return Inputs(sequences, plm, sae, torch.zeros(plm.d_model), store)


def test_a_latent_that_is_a_letter_is_found_and_tells_nothing_beyond_the_letters(
    plm: ProteinLM, sequences: Path, embedding_store: Path, tmp_path: Path
) -> None:
    table = read_sequences(sequences)
    rows = [
        f"{accession},{place + 1},{letter},{'lysine' if letter == 'K' else ''}"
        for accession, sequence in zip(table["accession"][:60], table["sequence"][:60])
        for place, letter in enumerate(sequence)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["accession,position,residue,label", *rows]))
    outcome, found = run(
        inputs_of(plm, sequences, embedding_store, letter_sae(plm)), tmp_path / "out",
        tasks=[], labels=tmp_path / "labels.csv", unlisted="unknown",
    )  # fmt: skip
    one = found[found["probe"] == "one unit"].set_index("features")
    assert one.loc[["sae", "letters", "window"], "auroc"].tolist() == [1.0, 1.0, 1.0]
    assert one.loc[["sae", "letters"], "f1"].tolist() == [1.0, 1.0]
    assert one.loc["sae", "unit_name"] == f"latent {LETTERS.index('K')}"
    assert one.loc["letters", "unit_name"] == "letter K"
    assert one.loc["window", "unit_name"] == "letter K at +0"
    assert (one.loc["sae", "auroc_gain"], one.loc["sae", "auroc_gain_low"]) == pytest.approx((0, 0), abs=1e-3)
    assert outcome.metrics["mean_auroc_labels_sae_one_unit"] == 1.0
    assert "for 0 of 1" in outcome.summary


def test_real_tasks_at_both_levels(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> None:
    inputs = inputs_of(plm, sequences, store, random_sae(plm, store))
    tasks = {"tasks": ["secondary_structure", "localisation_signals"], "min_positives": 2, "max_proteins": None}
    outcome, found = run(inputs, tmp_path / "a", **tasks)
    assert set(found["task"]) == {"secondary_structure", "localisation_signals"}
    features = found.groupby("task")["features"].unique().to_dict()
    assert features["secondary_structure"].tolist() == ["sae", "neurons", "letters", "window"]
    assert features["localisation_signals"].tolist() == [
        "sae mean", "sae max", "neurons mean", "neurons max", "letters mean", "letters max",
    ]  # fmt: skip
    for name in ("auroc", "average_precision", "f1", "balanced_accuracy", "mcc", "auroc_gain", "f1_gain"):
        low, value, high = (found[column].to_numpy() for column in (f"{name}_low", name, f"{name}_high"))
        assert np.isfinite(value).all()
        assert (low <= high).all()
        # A percentile interval need not hold the value where there are few proteins; most do.
        assert ((low <= value + 1e-9) & (value <= high + 1e-9)).mean() > 0.8
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    units = pd.read_parquet(tmp_path / "a" / "units.parquet")
    best = units[units["rank"] == 1].set_index(["task", "class", "features"])["unit"]
    chosen = found[found["probe"] == "one unit"].set_index(["task", "class", "features"])["unit"]
    assert (best.sort_index() == chosen.sort_index()).all()
    weights = pd.read_parquet(tmp_path / "a" / "weights.parquet")
    assert (weights["weight"] != 0).all()
    assert set(pd.read_csv(tmp_path / "a" / "left_out.csv").columns) >= {"task", "class", "num_positives_test"}
    again, _ = run(inputs, tmp_path / "b", **tasks, threads=2, max_tokens=512)
    for file in ("probes.csv", "units.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert again.summary == outcome.summary


def test_labels_of_proteins_that_exclude_each_other_have_an_accuracy(
    plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path
) -> None:
    """Rich or poor in lysine: the composition tells."""
    table = read_sequences(sequences)
    share = table["sequence"].str.count("K") / table["length"]
    rows = [
        f"{accession},{'rich' if k > share.median() else 'poor'}" for accession, k in zip(table["accession"], share)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["accession,label", *rows]))
    outcome, found = run(
        inputs_of(plm, sequences, store, random_sae(plm, store)), tmp_path / "out",
        tasks=[], labels=tmp_path / "labels.csv", max_proteins=None, strengths=[1.0],
    )  # fmt: skip
    accuracy = pd.read_csv(tmp_path / "out" / "accuracy.csv").set_index("features")
    assert accuracy["num_examples"].unique().tolist() == [(table["split"] == "test").sum()]
    assert accuracy.loc["letters mean", "low"] > accuracy.loc["letters mean", "most_frequent"]
    assert outcome.metrics["accuracy_labels_letters_mean"] == pytest.approx(accuracy.loc["letters mean", "accuracy"])
    best = found[(found["features"] == "letters mean") & (found["probe"] == "one unit")]
    assert best["unit_name"].unique().tolist() == ["letter K"]


def test_nothing_to_probe_is_said(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> None:
    inputs = inputs_of(plm, sequences, store, random_sae(plm, store))
    outcome, found = run(inputs, tmp_path / "out", min_positives=10**6)
    assert outcome.metrics == {"num_classes": 0, "num_classes_left_out": 3}
    assert "No probe could be fitted" in outcome.summary
    assert len(found) == 0


def examples() -> tuple[sparse.csr_matrix, NDArray[np.bool_], NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    x = rng.random((400, 12)) * (rng.random((400, 12)) < 0.4)
    targets = np.stack([x[:, 3] + rng.normal(0, 0.2, 400) > 0.5, x[:, 7] - x[:, 1] > 0], axis=1)
    known = rng.random((400, 2)) < [1.1, 0.7]
    return sparse.csr_matrix(x * np.linspace(0.2, 5.0, 12)), targets, known  # units of different scale


def test_the_choice_is_the_best_on_validation_among_known_examples() -> None:
    """Against scikit-learn: every unit fitted, every F1 computed, class by class."""
    x, targets, known = examples()
    fit, valid = slice(0, 200), slice(200, 400)
    probes = Probes(x[fit], targets[fit], known[fit], np.ones(12), SETTINGS)
    for low in (200, 250):  # batches add up
        part = slice(low, 250 if low == 200 else 400)
        probes.validate(x[part], targets[part], known[part])
    found, chosen = probes.valid_scores(), probes.choose()
    one, everything = chosen.scores(x[valid])
    for number in range(2):
        rows, wanted = known[fit, number], known[valid, number]
        y, z = targets[fit][rows, number], targets[valid][wanted, number]
        expected = []
        for unit in range(12):
            train = x[fit][rows][:, [unit]].toarray()
            top = train.max()
            model = LogisticRegression(class_weight="balanced", tol=1e-10).fit(train / top, y)
            expected.append(f1_score(z, model.predict(x[valid][wanted][:, [unit]].toarray() / top)))
        assert found[number] == pytest.approx(expected)
        assert chosen.units[number] == int(np.argmax(expected)) == (3, 7)[number]
        assert f1_score(z, one[wanted, number] > 0) == pytest.approx(chosen.one_valid[number])
        assert f1_score(z, everything[wanted, number] > 0) == pytest.approx(chosen.all_valid[number])
        top = x[fit][rows].max(axis=0).toarray()
        paths = [
            LogisticRegression(C=c, class_weight="balanced", tol=1e-10).fit(x[fit][rows].toarray() / top, y)
            for c in SETTINGS.strengths
        ]
        f1 = [f1_score(z, model.predict(x[valid][wanted].toarray() / top)) for model in paths]
        assert chosen.all_valid[number] == pytest.approx(max(f1))
        assert chosen.strengths[number] == SETTINGS.strengths[int(np.argmax(f1))]


def test_the_scale_raw_is_that_of_the_sae() -> None:
    """A unit whose maximum is 4 is fitted as if its activations were 4 times what is stored."""
    x, targets, known = examples()
    settings = Settings(0.5, (1.0,), "l2", "raw", "f1", 10_000, 1, 0)
    probes = Probes(x, targets, known, np.full(12, 4.0), settings)
    model = LogisticRegression(C=0.5, class_weight="balanced", tol=1e-10).fit(4 * x[:, [3]].toarray(), targets[:, 0])
    assert probes.slopes()[0, 3] == pytest.approx(4 * model.coef_[0, 0], rel=1e-4)


def test_letters_by_hand() -> None:
    found = letter_matrix(["AC", "KXA"], 1).toarray().reshape(5, 3, 20)
    letters = [["".join(LETTERS[n] for n in np.flatnonzero(place)) for place in row] for row in found]
    assert letters == [["", "A", "C"], ["A", "C", ""], ["", "K", ""], ["K", "", "A"], ["", "A", ""]]
    assert unit_names("window", 1, [])[0] == "letter A at -1"
    assert unit_names("window", 1, [])[-1] == "letter Y at +1"


def test_pooling_by_hand() -> None:
    x = sparse.csr_matrix(np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 4.0]], dtype=np.float32))
    starts = np.array([0, 2, 5])
    assert pooled(x, starts, "mean").toarray().tolist() == [[2, 0], [0, 2]]
    assert pooled(x, starts, "max").toarray().tolist() == [[3, 0], [0, 4]]
