"""The concept evaluation from real annotations to its tables, with SAEs whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from plmsae.activations.blocks import BlockStore
from plmsae.errors import DataError
from plmsae.evaluation.concepts import evaluate
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.labels import RESIDUE_LEVEL_TYPES
from plmsae.evaluation.units import Units, neurons
from plmsae.plms.base import ProteinLM
from plmsae.proteins.feature_types import PAIR_TYPES
from plmsae.proteins.tables import read_annotations, write_annotations
from tests.evaluation.conftest import LETTERS, letter_sae, random_sae

OPTIONS: dict[str, Any] = {
    "max_proteins": None,
    "min_instances": 5,
    "min_proteins": 3,
    "thresholds": [0.0, 0.15, 0.5, 0.6, 0.8],
    "concepts_per_latent": 3,
    "num_resamples": 200,
    "confidence": 0.95,
    "max_tokens": 1024,
    "threads": 1,
    "seed": 0,
}


def load_mean(store: Path) -> torch.Tensor:
    return load_file(store / "statistics.safetensors")["mean"].float()


@pytest.fixture(scope="module")
def inputs(plm: ProteinLM, sequences: Path, store: Path) -> Inputs:
    return Inputs(sequences, plm, random_sae(plm, store), load_mean(store), store)


@pytest.fixture(scope="module")
def letters(
    plm: ProteinLM, sequences: Path, embedding_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Inputs, Outcome, Path]:
    """The evaluation of the SAE whose latents are the letters."""
    folder = tmp_path_factory.mktemp("letters")
    found = Inputs(sequences, plm, letter_sae(plm), load_mean(embedding_store), embedding_store)
    return found, evaluate(found, folder, **OPTIONS), folder


def slow_f1(inputs: Inputs, split: str, concept_type: str, letter: str) -> float:
    """F1 of one letter for all annotations of a type, residue by residue."""
    proteins = inputs.split(split, None, 0).set_index("accession")["sequence"]
    annotations = read_annotations(inputs.sequences)
    annotations = annotations[(annotations["type"] == concept_type) & annotations["accession"].isin(proteins.index)]
    labelled: set[tuple[str, int]] = set()
    hits = 0
    for row in annotations.itertuples():
        ends = {row.start, row.end - 1}
        positions = ends if concept_type in PAIR_TYPES else set(range(row.start, row.end))
        labelled |= {(row.accession, position) for position in positions}
        hits += any(proteins[row.accession][position] == letter for position in positions)
    active = sum(sequence.count(letter) for sequence in proteins)
    true_positives = sum(proteins[accession][position] == letter for accession, position in labelled)
    if not true_positives:
        return 0.0
    precision = true_positives / active
    over_residues = concept_type in RESIDUE_LEVEL_TYPES
    recall = true_positives / len(labelled) if over_residues else hits / len(annotations)
    return 2 * precision * recall / (precision + recall)


def test_latents_that_are_letters_score_what_letters_score(letters: tuple[Inputs, Outcome, Path]) -> None:
    inputs, outcome, folder = letters
    table = pd.read_parquet(folder / "concepts.parquet")
    ours = table[(table["method"] == "sae") & (table["subtype"] == "")]
    assert len(ours) >= 8
    assert {"Helix", "Disulfide bond", "Binding site: any"} <= set(ours["concept"])
    for row in ours.itertuples():
        valid = [slow_f1(inputs, "valid", row.type, letter) for letter in LETTERS]
        assert row.f1_valid == pytest.approx(max(valid)), row.concept
        assert LETTERS[row.latent] == LETTERS[int(np.argmax(valid))], row.concept
        assert row.f1_test == pytest.approx(slow_f1(inputs, "test", row.type, LETTERS[row.latent])), row.concept
        assert row.threshold == 0
    assert not ours["beats_residue"].any()
    assert outcome.metrics["num_concepts_better_than_residue_sae"] == 0
    residue = table[table["method"] == "residue"].set_index("concept")
    # A set of letters is never worse than one of them where it is selected.
    assert (residue.loc[ours["concept"], "f1_valid"].to_numpy() >= ours["f1_valid"].to_numpy() - 1e-12).all()


def test_cysteine_is_all_there_is_to_a_disulfide_bond_for_a_letter(letters: tuple[Inputs, Outcome, Path]) -> None:
    table = pd.read_parquet(letters[2] / "concepts.parquet").set_index(["concept", "method"])
    assert table.loc[("Disulfide bond", "residue"), "unit"] == "letters C"
    assert table.loc[("Disulfide bond", "residue"), "recall"] == 1.0
    assert table.loc[("Disulfide bond", "sae"), "unit"] == f"latent {LETTERS.index('C')}"


def dense_test_set(inputs: Inputs) -> tuple[pd.DataFrame, dict[str, np.ndarray[Any, Any]], Any]:
    """Test proteins, activations of SAE and neurons at all of their residues, and a function that labels a concept."""
    proteins = inputs.split("test", None, 0)
    found = {}
    for units in (Units("sae", inputs.sae), Units("neurons", neurons(inputs))):
        x = [inputs.plm.hidden(inputs.plm.tokenize([s]), inputs.sae.config.layer) for s in proteins["sequence"]]
        found[units.method] = units.activations(torch.cat(x)).toarray()
    annotations = read_annotations(inputs.sequences)
    start = dict(zip(proteins["accession"], np.concatenate([[0], np.cumsum(proteins["length"])[:-1]]), strict=True))

    def labelled(keep: Any) -> np.ndarray[Any, Any]:
        mask = np.zeros(int(proteins["length"].sum()), dtype=bool)
        for row in annotations.itertuples():
            if row.accession in start and (kept := keep(row)) is not None:
                mask[[start[row.accession] + position for position in kept]] = True
        return mask

    return proteins, found, labelled


def residues_of(kind: str) -> Any:
    def keep(row: Any) -> Any:
        if row.type != kind:
            return None
        return {row.start, row.end - 1} if kind in PAIR_TYPES else range(row.start, row.end)

    return keep


def test_areas_are_those_of_scikit_learn_on_all_test_residues(inputs: Inputs, tmp_path: Path) -> None:
    metrics = evaluate(inputs, tmp_path, **OPTIONS).metrics
    table = pd.read_parquet(tmp_path / "concepts.parquet")
    _, dense, labelled = dense_test_set(inputs)
    compared = 0
    for row in table[(table["subtype"] == "") & (table["method"] != "residue")].itertuples():
        truth = labelled(residues_of(row.type))
        assert row.prevalence == pytest.approx(truth.mean())
        expected = average_precision_score(truth, dense[row.method][:, row.latent])
        assert row.auprc == pytest.approx(expected, abs=5e-4), row.concept
        assert row.auprc_low <= row.auprc <= row.auprc_high
        compared += 1
    assert compared >= 16
    letters = table[table["method"] == "residue"].set_index("concept")
    assert letters.loc["Disulfide bond", "auprc"] > 5 * letters.loc["Disulfide bond", "prevalence"]
    for method, part in table.groupby("method"):
        assert metrics[f"mean_auprc_{method}"] == pytest.approx(part["auprc"].mean())
        assert metrics[f"mean_auprc_{method}_low"] < metrics[f"mean_auprc_{method}"]
        assert metrics[f"mean_auprc_{method}"] < metrics[f"mean_auprc_{method}_high"]


def test_derived_concepts_stand_beside_the_others_and_change_nothing_of_them(
    letters: tuple[Inputs, Outcome, Path], tmp_path: Path
) -> None:
    inputs, outcome, folder = letters
    wanted = [
        {"of": "Helix", "first": 2},
        {"of": "Beta strand", "near": "Binding site", "within": 8},
        {"of": "Zinc finger", "near": "Transmembrane", "within": 0},
    ]
    found = evaluate(inputs, tmp_path, **OPTIONS, derived=wanted)
    assert {name: value for name, value in found.metrics.items() if not name.startswith("derived_")} == outcome.metrics
    assert found.summary.startswith(outcome.summary)
    for path in folder.rglob("*.*"):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name
    table = pd.read_parquet(tmp_path / "derived.parquet")
    ours = table[table["method"] == "sae"].set_index("concept")
    assert list(ours.index) == ["Beta strand, within 8 of Binding site", "Helix, first 2 residues"]
    assert pd.read_csv(tmp_path / "derived_left_out.csv")["concept"].tolist() == [
        "Zinc finger, within 0 of Transmembrane"
    ]
    assert (found.metrics["derived_num_concepts"], found.metrics["derived_num_concepts_left_out"]) == (2, 1)
    assert found.metrics["derived_mean_f1_sae"] == pytest.approx(ours["f1_test"].mean())
    assert found.metrics["derived_mean_auprc_sae"] == pytest.approx(ours["auprc"].mean())
    readable = pd.read_csv(tmp_path / "table.csv").set_index("derived concept")
    assert list(readable.index) == list(ours.index)
    for name, one in ours.iterrows():
        assert readable.loc[name, "F1 of the SAE, test"].startswith(f"{one['f1_test']:.3f} [{one['ci_low']:.3f}, ")
        assert readable.loc[name, "AUPRC"] == pytest.approx(one["auprc"], abs=5e-4)
    # The selected letter's score on the first two residues of every helix, residue by residue.
    row = ours.loc["Helix, first 2 residues"]
    proteins, _, labelled = dense_test_set(inputs)
    truth = labelled(lambda one: range(one.start, min(one.end, one.start + 2)) if one.type == "Helix" else None)
    on = np.array([letter == LETTERS[row["latent"]] for letter in "".join(proteins["sequence"])])
    assert row["precision"] == pytest.approx((on & truth).sum() / on.sum())
    assert row["num_residues_test"] == truth.sum()
    assert row["auprc"] == pytest.approx(average_precision_score(truth, on), abs=1e-6)


def test_derived_concepts_that_are_too_rare_leave_an_empty_table(
    letters: tuple[Inputs, Outcome, Path], tmp_path: Path
) -> None:
    wanted = [{"of": "Zinc finger", "near": "Transmembrane", "within": 0}]
    found = evaluate(letters[0], tmp_path, **OPTIONS, derived=wanted)
    assert found.metrics["derived_num_concepts"] == 0
    assert pd.read_parquet(tmp_path / "derived.parquet").empty
    assert "None of the 1 derived concepts" in found.summary


def test_tables_metrics_and_summary_agree(inputs: Inputs, tmp_path: Path) -> None:
    outcome = evaluate(inputs, tmp_path, **OPTIONS)
    metrics = outcome.metrics
    table = pd.read_parquet(tmp_path / "concepts.parquet")
    by_method = {name: part.set_index("concept") for name, part in table.groupby("method")}
    assert set(by_method) == {"sae", "neurons", "residue"}
    assert all(len(part) == metrics["num_concepts"] for part in by_method.values())
    for name, part in by_method.items():
        assert metrics[f"mean_f1_{name}"] == pytest.approx(part["f1_test"].mean())
        assert metrics[f"mean_f1_{name}_low"] <= metrics[f"mean_f1_{name}"] <= metrics[f"mean_f1_{name}_high"]
        assert metrics[f"num_concepts_above_half_{name}"] == (part["f1_test"] > 0.5).sum()
        f1 = 2 * part["precision"] * part["recall"] / (part["precision"] + part["recall"])
        np.testing.assert_allclose(part["f1_test"], f1.fillna(0))
        assert ((part["ci_low"] <= part["f1_test"] + 1e-12) & (part["f1_test"] <= part["ci_high"] + 1e-12)).all()
    gain = by_method["sae"]["f1_test"] - by_method["neurons"]["f1_test"]
    assert metrics["f1_gain_over_neurons"] == pytest.approx(gain.mean())
    assert metrics["num_concepts_better_than_residue_sae"] == by_method["sae"]["beats_residue"].sum()
    assert (by_method["sae"]["num_instances_valid"] >= 5).all()
    assert (by_method["sae"]["num_proteins_test"] >= 3).all()
    assert by_method["neurons"]["unit"].str.fullmatch(r"neuron \d+ [+-]").all()
    as_text = pd.read_csv(tmp_path / "concepts.csv", keep_default_na=False, na_values={"latent": "", "threshold": ""})
    as_text["latent"] = as_text["latent"].astype("Int64")
    pd.testing.assert_frame_equal(as_text, table, check_dtype=False, rtol=1e-4)
    assert f"mean best F1 is {metrics['mean_f1_sae']:.3f}" in outcome.summary
    assert (tmp_path / "figures" / "concepts.png").stat().st_size > 10_000
    left_out = pd.read_csv(tmp_path / "left_out.csv")
    assert len(left_out) == metrics["num_concepts_left_out"]
    assert not set(left_out["concept"]) & set(table["concept"])


def test_latents_table_names_the_best_concepts(inputs: Inputs, tmp_path: Path) -> None:
    evaluate(inputs, tmp_path, **OPTIONS)
    latents = pd.read_parquet(tmp_path / "latents.parquet")
    concepts = pd.read_parquet(tmp_path / "concepts.parquet")
    ours = concepts[concepts["method"] == "sae"].set_index("concept")
    assert latents.groupby("latent")["rank"].max().max() == 3
    assert latents.sort_values(["latent", "rank"])["f1_valid"].gt(0).all()
    falling = latents.groupby("latent")["f1_valid"].apply(lambda values: values.is_monotonic_decreasing)
    assert falling.all()
    # Where a selected latent lists the concept, it lists the numbers of the concept table.
    merged = latents.merge(ours.reset_index(), on=["concept", "latent"], suffixes=("", "_concept"))
    assert len(merged) > 0
    for name in ("f1_valid", "f1_test", "f1_residue", "threshold"):
        np.testing.assert_allclose(merged[name], merged[f"{name}_concept"])


def test_numbers_do_not_depend_on_batches_or_threads(letters: tuple[Inputs, Outcome, Path], tmp_path: Path) -> None:
    inputs, outcome, folder = letters
    again = evaluate(inputs, tmp_path, **{**OPTIONS, "max_tokens": 300, "threads": 3})
    assert again == outcome
    for name in ("concepts.csv", "latents.csv", "left_out.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_without_annotations_it_says_so(inputs: Inputs, sequences: Path, tmp_path: Path) -> None:
    names = ("accession", "offset", "type", "start", "end", "note", "ligand")
    (tmp_path / "sequences.parquet").write_bytes((sequences / "sequences.parquet").read_bytes())
    write_annotations(tmp_path, {name: [] for name in names})
    outcome = evaluate(replace(inputs, sequences=tmp_path), tmp_path, **OPTIONS)
    assert outcome.metrics == {"num_concepts": 0, "num_concepts_left_out": 0}
    assert "No concept could be evaluated" in outcome.summary
    assert pd.read_csv(tmp_path / "concepts.csv").empty
    assert pd.read_parquet(tmp_path / "latents.parquet").empty


def test_neurons_are_both_sides_of_every_coordinate(inputs: Inputs, store: Path) -> None:
    baseline = Units("neurons", neurons(inputs))
    rows = torch.cat(list(BlockStore(store, "train").rows(4096)))
    dense = baseline.activations(rows).toarray()
    width = rows.shape[1]
    assert dense.shape == (len(rows), 2 * width)
    np.testing.assert_allclose(dense.max(axis=0), 1.0, rtol=1e-5)
    assert ((dense[:, :width] > 0) & (dense[:, width:] > 0)).sum() == 0
    centred = (rows - inputs.mean).numpy()
    np.testing.assert_allclose(dense[:, 5], np.maximum(centred[:, 5], 0) / centred[:, 5].max(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        dense[:, width + 5], np.maximum(-centred[:, 5], 0) / -centred[:, 5].min(), rtol=1e-4, atol=1e-6
    )
    assert (baseline.unit_name(5), baseline.unit_name(width + 5)) == ("neuron 5 +", "neuron 5 -")


def test_latents_are_divided_by_their_maximum_and_silent_ones_stay_off(inputs: Inputs) -> None:
    rows = torch.cat(list(BlockStore(inputs.store, "valid").rows(4096)))[:500]
    units = Units("sae", inputs.sae)
    dense = units.activations(rows).toarray()
    z = inputs.sae.encode(rows).numpy()
    highest = inputs.sae.latent_max.numpy()
    expected = np.divide(z, highest, out=np.zeros_like(z), where=highest > 0)
    np.testing.assert_allclose(dense, expected, rtol=1e-6)
    silenced = random_sae(inputs.plm, inputs.store)
    busy = int(np.argmax((z > 0).sum(axis=0)))
    silenced.latent_max[busy] = 0
    assert (Units("sae", silenced).activations(rows).toarray()[:, busy] == 0).all()


def test_an_sae_without_measured_maxima_is_refused(inputs: Inputs) -> None:
    blank = random_sae(inputs.plm, inputs.store)
    blank.latent_max.zero_()
    with pytest.raises(DataError, match="largest activations"):
        Units("sae", blank)
