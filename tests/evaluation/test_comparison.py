"""The comparison from inputs to tables: what it writes agrees with independent routes to the same numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from plmsae.evaluation.comparison import evaluate
from plmsae.evaluation.concepts import evaluate as evaluate_concepts
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.plms.base import ProteinLM
from tests.evaluation.conftest import random_sae, saved

SETTINGS: dict[str, Any] = {
    "max_proteins": 20,
    "min_instances": 5,
    "min_proteins": 3,
    "thresholds": [0.0, 0.5],
    "num_resamples": 50,
    "confidence": 0.95,
    "max_tokens": 1024,
    "threads": 1,
    "seed": 0,
}
FITS: dict[str, Any] = {
    "fit_rows": None,
    "ica_rows": 1500,
    "ica_components": 16,
    "ica_iterations": 5,
    "f1_bounds": [0.1, 0.5],
}
METHODS = ("sae", "neurons", "pca", "ica", "random")


@pytest.fixture(scope="module")
def inputs(plm: ProteinLM, sequences: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    sae = random_sae(plm, store)
    # fp32 sums in blocks of other sizes may differ in the last bit: take the maxima as the evaluation does.
    folder = saved(sae, tmp_path_factory.mktemp("sae"))
    return Inputs.load(sequences, store, folder, root=folder)


@pytest.fixture(scope="module")
def found(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    output = tmp_path_factory.mktemp("out")
    return evaluate(inputs, output, **SETTINGS, **FITS), output


def test_concepts_are_those_of_the_concept_evaluation(
    inputs: Inputs, found: tuple[Outcome, Path], tmp_path: Path
) -> None:
    """With maxima over the same rows, the SAE, the neurons and the letters score as `evaluate@concepts` says."""
    alone = evaluate_concepts(inputs, tmp_path, **SETTINGS, concepts_per_latent=3).metrics
    metrics = found[0].metrics
    assert metrics["num_concepts"] == alone["num_concepts"] > 3
    for name in ("mean_f1_sae", "mean_f1_sae_low", "mean_f1_neurons", "mean_f1_residue", "f1_gain_over_neurons_high"):
        assert metrics[name] == pytest.approx(alone[name], abs=2e-3), name
    table = pd.read_parquet(found[1] / "concepts_by_method.parquet")
    assert set(table["method"]) == {*METHODS, "residue"}
    for method, mean in table.groupby("method")["f1_test"].mean().items():
        assert metrics[f"mean_f1_{method}"] == pytest.approx(mean)


def test_reconstruction_of_the_test_residues(inputs: Inputs, found: tuple[Outcome, Path]) -> None:
    proteins = inputs.split("test", 20, 0)
    pieces = [inputs.plm.hidden(inputs.plm.tokenize([sequence]), 3) for sequence in proteins["sequence"]]
    x = torch.cat(pieces).double()
    error = (x - inputs.sae(x.float()).double()).square().sum()
    metrics = found[0].metrics
    assert metrics["num_residues_test"] == len(x)
    assert metrics["fvu_sae"] == pytest.approx(float(error / (x - x.mean(0)).square().sum()), rel=1e-3)
    assert metrics["budget"] == metrics["l0_sae"] == metrics["l0_random"] == 16
    assert metrics["l0_pca"] == pytest.approx(inputs.plm.d_model, abs=0.1)
    assert metrics["fvu_pca_all"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["fvu_pca"] <= metrics["fvu_pca_leading"] < 1
    assert metrics["fvu_sae_minus_pca"] == pytest.approx(metrics["fvu_sae"] - metrics["fvu_pca"])
    curves = pd.read_parquet(found[1] / "fvu.parquet")
    for (method, kept), curve in curves.groupby(["method", "kept"]):
        values = curve.sort_values("active")["fvu"].to_numpy()
        if method in ("pca", "neurons"):  # orthogonal: every further unit helps
            assert (np.diff(values) <= 1e-12).all(), (method, kept)


def test_numbers_say_what_they_are_of(found: tuple[Outcome, Path]) -> None:
    outcome, output = found
    metrics = outcome.metrics
    assert all(np.isfinite(value) for value in metrics.values())
    units = pd.read_parquet(output / "units.parquet")
    for method, part in units.groupby("method"):
        effective = part["effective_concepts"].dropna()
        assert len(effective) == metrics[f"num_units_effective_{method}"] > 0
        assert effective.mean() == pytest.approx(metrics[f"effective_concepts_{method}"])
        assert effective.between(1 - 1e-9, metrics["num_classes"] + 1e-9).all()
        for bound in ("0_1", "0_5"):
            counts = part[f"concepts_above_{bound}"]
            assert (counts > 0).sum() == metrics[f"num_units_above_{bound}_{method}"]
            if (counts > 0).any():
                mean = metrics[f"concepts_per_unit_above_{bound}_{method}"]
                assert counts[counts > 0].mean() == pytest.approx(mean)
                assert mean >= 1
    table = pd.read_csv(output / "table.csv")
    assert list(table.columns) == ["property", "measured", "SAE", "PCA", "ICA", "neurons", "random"]
    assert list(dict.fromkeys(table["property"])) == ["basis", "objective", "features", "semantics"]
    assert "16 active units" in outcome.summary
    assert "FastICA had not settled" in outcome.summary
    assert json.dumps(dict(metrics))


def test_threads_do_not_change_a_byte(inputs: Inputs, found: tuple[Outcome, Path], tmp_path: Path) -> None:
    again = evaluate(inputs, tmp_path, **{**SETTINGS, "threads": 2}, **FITS)
    assert again == found[0]
    for name in ("table.csv", "lecture.csv", "units.parquet", "concepts_by_method.parquet", "figures/baselines.png"):
        assert (tmp_path / name).read_bytes() == (found[1] / name).read_bytes(), name


def test_without_concepts_the_rest_is_measured(inputs: Inputs, tmp_path: Path) -> None:
    outcome = evaluate(inputs, tmp_path, **{**SETTINGS, "min_instances": 10**6, "max_proteins": 4}, **FITS)
    assert outcome.metrics["num_concepts"] == outcome.metrics["num_classes"] == 0
    assert {f"fvu_{name}" for name in METHODS} <= set(outcome.metrics)
    assert not [name for name in outcome.metrics if "f1" in name or "effective" in name]
    assert "No concept was frequent enough" in outcome.summary
    assert "semantics" not in set(pd.read_csv(tmp_path / "table.csv")["property"])
    assert (tmp_path / "figures" / "baselines.png").is_file()
