"""Scores for choosing among SAEs: those of the evaluations, on validation proteins, whatever the test split holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from plmsae.errors import DataError
from plmsae.evaluation import concepts, fidelity, selection
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.selection import concept_scores, cut, fidelity_scores
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import read_annotations, read_sequences, write_annotations, write_sequences
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from tests.evaluation.conftest import LAYER, random_sae, sae_config

FIDELITY: dict[str, Any] = {"max_proteins": 12, "masked_share": 0.15, "max_tokens": 1024, "threads": 1, "seed": 0}
CONCEPTS: dict[str, Any] = {
    "max_proteins": None,
    "min_instances": 3,
    "min_proteins": 2,
    "thresholds": [0.0, 0.5],
    "max_tokens": 1024,
    "threads": 2,
    "seed": 0,
}
INTERVALS = {"num_resamples": 10, "confidence": 0.95}


def exact_sae(plm: ProteinLM, mean: torch.Tensor) -> SparseAutoencoder:
    exact = build(sae_config(plm, "neurons", LAYER, 2 * plm.d_model, plm.d_model))
    exact.initialise(torch.Generator(), center=mean)
    exact.latent_max.fill_(10.0)
    return exact


@pytest.fixture(scope="module")
def inputs(plm: ProteinLM, sequences: Path, store: Path) -> Inputs:
    mean = load_file(store / "statistics.safetensors")["mean"].float()
    return Inputs(sequences, plm, random_sae(plm, store), mean, store)


@pytest.fixture(scope="module")
def saes(inputs: Inputs) -> dict[str, SparseAutoencoder]:
    return {"random": inputs.sae, "exact": exact_sae(inputs.plm, inputs.mean)}


def relabelled(inputs: Inputs, folder: Path, table: pd.DataFrame) -> Inputs:
    """The same annotations with another table of sequences."""
    folder.mkdir(parents=True)
    write_sequences(folder, {name: table[name].tolist() for name in table.columns})
    annotations = read_annotations(inputs.sequences)
    write_annotations(folder, {name: annotations[name].tolist() for name in annotations.columns})
    return replace(inputs, sequences=folder)


def test_fidelity_is_that_of_the_evaluation(inputs: Inputs, saes: dict[str, SparseAutoencoder], tmp_path: Path) -> None:
    table = read_sequences(inputs.sequences)
    table["split"] = table["split"].map({"valid": "test", "test": "train", "train": "valid"})
    other = relabelled(inputs, tmp_path / "ingest", table)
    scores = fidelity_scores(inputs, saes, **FIDELITY)
    for name, sae in saes.items():
        options = {**FIDELITY, **INTERVALS, "error_term": False, "single_mask_residues": 0}
        (tmp_path / name).mkdir()
        metrics = fidelity.evaluate(replace(other, sae=sae), tmp_path / name, **options).metrics
        assert scores[name] == pytest.approx(metrics["masked_loss_recovered_mean"], rel=1e-6)
        assert fidelity_scores(inputs, {name: sae}, **FIDELITY)[name] == scores[name], "as alone"
    assert scores["exact"] == pytest.approx(100, abs=0.01)
    assert scores["random"] < 90


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_concepts_are_those_of_the_evaluation_with_a_part_as_test(
    inputs: Inputs, saes: dict[str, SparseAutoencoder], tmp_path: Path, share: float
) -> None:
    table = read_sequences(inputs.sequences)
    valid = table[table["split"] == "valid"].sort_values(["accession", "offset"])
    _, second = cut(valid, CONCEPTS["seed"], share)
    table["split"] = table["split"].where(table["split"] == "valid", "train")
    table.loc[table["accession"].isin(second["accession"]), "split"] = "test"
    other = relabelled(inputs, tmp_path / "ingest", table)
    scores = concept_scores(inputs, saes, **CONCEPTS, **({} if share == 0.5 else {"scored_share": share}))
    for name, sae in saes.items():
        options = {**CONCEPTS, **INTERVALS, "concepts_per_latent": 1}
        (tmp_path / name).mkdir()
        metrics = concepts.evaluate(replace(other, sae=sae), tmp_path / name, **options).metrics
        assert scores[name] == pytest.approx(metrics["mean_f1_sae"], rel=1e-9)
        assert 0 < scores[name] < 1
    assert scores["random"] != scores["exact"]


def test_the_test_split_is_never_read(inputs: Inputs, saes: dict[str, SparseAutoencoder], tmp_path: Path) -> None:
    table = read_sequences(inputs.sequences)
    inside = table["split"] == "test"
    table.loc[inside, "sequence"] = table.loc[inside, "sequence"].str[::-1]
    other = relabelled(inputs, tmp_path / "ingest", table)
    assert fidelity_scores(other, saes, **FIDELITY) == fidelity_scores(inputs, saes, **FIDELITY)
    assert concept_scores(other, saes, **CONCEPTS) == concept_scores(inputs, saes, **CONCEPTS)
    without = relabelled(inputs, tmp_path / "without", table[~inside].reset_index(drop=True))
    assert concept_scores(without, saes, **CONCEPTS) == concept_scores(inputs, saes, **CONCEPTS)


def test_many_units_run_in_groups_and_a_silent_sae_scores_nothing(
    inputs: Inputs, saes: dict[str, SparseAutoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = concept_scores(inputs, saes, **CONCEPTS)
    silent = random_sae(inputs.plm, inputs.store)
    silent.latent_max.zero_()
    monkeypatch.setattr(selection, "UNITS_AT_ONCE", 300)
    assert concept_scores(inputs, {"silent": silent, **saes}, **CONCEPTS) == {"silent": 0.0, **expected}


def test_what_cannot_be_scored_is_said(inputs: Inputs, saes: dict[str, SparseAutoencoder], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no concept has 100000 annotations") as caught:
        concept_scores(inputs, saes, **{**CONCEPTS, "min_instances": 100_000})
    assert "sweep.min_instances" in (caught.value.fix or "")
    table = read_sequences(inputs.sequences)
    table["cluster"] = "one"
    with pytest.raises(DataError, match="one homology cluster"):
        concept_scores(relabelled(inputs, tmp_path / "ingest", table), saes, **CONCEPTS)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 1000)), min_size=2, max_size=60).filter(
        lambda rows: len({cluster for cluster, _ in rows}) > 1
    ),
    st.integers(0, 2**53 - 1),
    st.sampled_from([0.1, 0.2, 0.5, 0.9]),
)
def test_parts_share_no_cluster_and_are_as_long_as_asked(rows: list[tuple[int, int]], seed: int, share: float) -> None:
    table = pd.DataFrame(
        [(str(c), length, n) for n, (c, length) in enumerate(rows)], columns=["cluster", "length", "n"]
    )
    first, second = cut(table, seed, share)
    assert sorted([*first["n"], *second["n"]]) == list(range(len(rows)))
    assert not set(first["cluster"]) & set(second["cluster"])
    longest = table.groupby("cluster")["length"].sum().max()
    assert abs(second["length"].sum() - share * table["length"].sum()) <= longest * max(share, 1 - share) + 1e-6
