"""The steering stage through its declared work function, from folders to folders."""

# ruff: noqa: F401, F811  (fixtures of the evaluation tests are imported by name)
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from plmsae.errors import DataError, UserError
from plmsae.plms.base import Edit, ProteinLM
from plmsae.proteins.tables import read_sequences, write_sequences
from plmsae.saes import load_folder, save
from plmsae.stages.spec import StageContext, StageResult
from plmsae.stages.steer import STAGE, SteerParams
from tests.evaluation.conftest import letter_sae, plm, random_sae, saved, sequences, store

SMALL: dict[str, Any] = {"max_proteins": 6, "num_random_directions": 3, "num_resamples": 50, "threads": 1}


@pytest.fixture
def inputs(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> dict[str, Path]:
    return {"sequences": sequences, "activations": store, "sae": saved(random_sae(plm, store), tmp_path / "sae")}


def run(output: Path, inputs: dict[str, Path], **params: Any) -> StageResult:
    output.mkdir(parents=True)
    context = StageContext(
        params=SteerParams(**{**SMALL, **params}),
        inputs=inputs,
        manifests={},
        output=output,
        checkpoints=output.parent / "checkpoints",
        sources={},
        root=output.parent,
    )
    return STAGE.work()(context)


def residues_of(output: Path) -> pd.DataFrame:
    return pd.read_parquet(output / "residues.parquet")


def test_equal_inputs_give_equal_bytes_whatever_the_threads(inputs: dict[str, Path], tmp_path: Path) -> None:
    results = [run(tmp_path / f"of{n}" / "out", inputs, threads=n, max_tokens=500) for n in (1, 2)]
    assert results[0] == results[1]
    files = sorted(p.relative_to(tmp_path / "of1") for p in (tmp_path / "of1").rglob("*") if p.is_file())
    assert {file.name for file in files} == {
        "residues.parquet",
        "amino_acids.csv",
        "substitutions.csv",
        "top_residues.csv",
        "steer.png",
    }
    for file in files:
        assert (tmp_path / "of1" / file).read_bytes() == (tmp_path / "of2" / file).read_bytes(), file


def test_plots_name_columns_that_are_written(inputs: dict[str, Path], tmp_path: Path) -> None:
    run(tmp_path / "out", inputs)
    for plot in STAGE.plots:
        header = (tmp_path / "out" / plot.file).read_text().splitlines()[0].split(",")
        assert {plot.x, *plot.y} <= set(header)


def test_the_numbers_are_those_of_the_model_run_by_hand(
    inputs: dict[str, Path], plm: ProteinLM, tmp_path: Path
) -> None:
    """Every column of a protein's residues, and the metrics, from plain calls of model and SAE."""
    table = read_sequences(inputs["sequences"])
    row = table[table["split"] == "test"].iloc[3]
    result = run(tmp_path / "out", inputs, latent=9, clamp=2.0, strength=0.8, accessions=[row["accession"]])
    sae = load_folder(inputs["sae"] / "sae")
    tokens, letters = plm.tokenize([row["sequence"]]), "ACDEFGHIKLMNPQRSTVWY"
    columns = [plm.vocabulary[letter] for letter in letters]
    z = sae.encode(plm.hidden(tokens, 3))[:, 9]
    amount = 0.8 * (2 * sae.latent_max[9] - z)
    edited = plm.logits(tokens, Edit(3, "residual", lambda x: x + amount[:, None] * sae.atoms[9].detach()))
    before, after = (logits[:, columns].double() for logits in (plm.logits(tokens), edited))
    p, q = before.softmax(dim=1), after.softmax(dim=1)
    kl = (p * (p / q).log()).sum(dim=1)

    found = residues_of(tmp_path / "out")
    assert found["position"].tolist() == list(range(1, len(row["sequence"]) + 1))
    assert "".join(found["residue"]) == row["sequence"]
    assert found["edited"].all()
    np.testing.assert_allclose(found["activation"], z, rtol=1e-5)
    np.testing.assert_allclose(found["shift"], amount * sae.atoms[9].norm().item(), rtol=1e-4)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(found["mean_abs_delta_logit"], (after - before).abs().mean(dim=1), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found["max_abs_delta_logit"], (after - before).abs().amax(dim=1), rtol=1e-3, atol=1e-6)
    assert "".join(found["predicted_before"]) == "".join(letters[i] for i in p.argmax(dim=1))
    assert "".join(found["predicted_after"]) == "".join(letters[i] for i in q.argmax(dim=1))

    metrics = result.metrics
    assert metrics["kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
    assert metrics["max_abs_delta_logit"] == pytest.approx(float((after - before).abs().max()), rel=1e-3)
    assert metrics["changed_share"] == float((p.argmax(dim=1) != q.argmax(dim=1)).double().mean())
    assert metrics["latent_max"] == pytest.approx(float(sae.latent_max[9]))
    assert metrics["clamp_value"] == pytest.approx(2 * float(sae.latent_max[9]))
    assert metrics["kl_low"] == metrics["kl"] == metrics["kl_high"], "one protein has nothing to resample"
    acids = pd.read_csv(tmp_path / "out" / "amino_acids.csv")
    np.testing.assert_allclose(acids["probability_before"], p.mean(dim=0), rtol=1e-4)
    np.testing.assert_allclose(acids["change"], (q - p).mean(dim=0), rtol=1e-2, atol=1e-6)
    assert acids["change"].sum() == pytest.approx(0, abs=1e-5)
    assert acids["num_predicted_after"].sum() == len(found)


def test_strength_zero_changes_nothing_at_all(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(tmp_path / "out", inputs, strength=0.0).metrics
    zeros = [name for name in metrics if "kl" in name or "delta_logit" in name or "changed" in name]
    assert len(zeros) == 3 * 9 + 2
    assert all(metrics[name] == 0.0 for name in zeros)
    assert metrics["mean_shift"] == 0.0
    found = residues_of(tmp_path / "out")
    assert (found["predicted_before"] == found["predicted_after"]).all()
    assert pd.read_csv(tmp_path / "out" / "substitutions.csv").empty


def test_the_effect_grows_with_the_strength_and_stands_beside_its_controls(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    latent = run(tmp_path / "choice", inputs).metrics["latent"]
    kl = []
    for strength in (0.25, 0.5, 1.0):
        result = run(tmp_path / str(strength), inputs, latent=latent, strength=strength, clamp=3.0)
        metrics = result.metrics
        kl.append(metrics["kl"])
        assert metrics["kl_low"] <= metrics["kl"] <= metrics["kl_high"]
        assert metrics["excess_kl"] == pytest.approx(metrics["kl"] - metrics["random_kl"])
        assert metrics["random_kl"] > 0
        assert 0 <= metrics["num_random_directions_as_strong"] <= 3
    assert kl == sorted(kl)
    assert kl[0] > 0
    substitutions = pd.read_csv(tmp_path / "1.0" / "substitutions.csv")
    found = residues_of(tmp_path / "1.0")
    assert substitutions["num_residues"].sum() == (found["predicted_before"] != found["predicted_after"]).sum()
    top = pd.read_csv(tmp_path / "1.0" / "top_residues.csv")
    assert top["kl"].max() == pytest.approx(found["kl"].max(), rel=1e-5)
    assert len(top) == 20


def test_a_range_edits_its_residues_only_and_counts_along_uniprot(inputs: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(tmp_path / "out", inputs, latent=9, clamp=4.0, first_residue=10, last_residue=12).metrics
    found = residues_of(tmp_path / "out")
    assert found[found["edited"]].groupby("accession")["position"].apply(list).tolist() == [[10, 11, 12]] * 6
    assert (found["shift"][~found["edited"]] == 0).all()
    assert metrics["num_edited_residues"] == 18
    assert metrics["kl_edited"] > metrics["kl_elsewhere"] > 0


def test_windows_of_a_protein_count_along_the_whole_of_it(inputs: dict[str, Path], tmp_path: Path) -> None:
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRV"
    columns = {
        "accession": ["P1", "P1"],
        "offset": [0, 30],
        "sequence": [sequence, sequence],
        "length": [40, 40],
        "cluster": ["P1", "P1"],
        "split": ["test", "test"],
        "name": ["", ""],
    }
    (tmp_path / "windows").mkdir()
    write_sequences(tmp_path / "windows", columns)
    inputs = {**inputs, "sequences": tmp_path / "windows"}
    metrics = run(tmp_path / "out", inputs, latent=9, first_residue=35, last_residue=50).metrics
    found = residues_of(tmp_path / "out")
    assert found[found["edited"]].groupby("offset")["position"].agg(["min", "max"]).values.tolist() == [
        [35, 40],
        [35, 50],
    ]
    assert (metrics["num_proteins"], metrics["num_residues"]) == (1, 80)
    # The first window ends before residue 41: it is left out.
    run(tmp_path / "later", inputs, latent=9, first_residue=41, last_residue=50)
    assert set(residues_of(tmp_path / "later")["offset"]) == {30}


@pytest.mark.parametrize(
    ("params", "problem", "where"),
    [
        ({"latent": 256}, "has no latent 256", "steer.latent"),
        ({"accessions": ["P00000"]}, "'P00000' is not in the output", "steer.accessions"),
        ({"first_residue": 5000}, "no chosen protein has a residue 5000", "steer.first_residue"),
    ],
)
def test_what_is_not_there_is_named(
    inputs: dict[str, Path], tmp_path: Path, params: dict[str, Any], problem: str, where: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        run(tmp_path / "out", inputs, **params)
    assert error.value.where == where
    assert error.value.fix
    assert not list((tmp_path / "out").iterdir())


def test_a_dead_latent_is_refused(inputs: dict[str, Path], plm: ProteinLM, store: Path, tmp_path: Path) -> None:
    sae = random_sae(plm, store)
    sae.latent_max[17] = 0.0
    save(sae, tmp_path / "dead" / "sae")
    with pytest.raises(UserError, match="latent 17 is dead") as error:
        run(tmp_path / "out", {**inputs, "sae": tmp_path / "dead"}, latent=17)
    assert error.value.where == "steer.latent"


def test_an_sae_of_another_layer_and_an_empty_split_are_refused(
    inputs: dict[str, Path], plm: ProteinLM, tmp_path: Path
) -> None:
    other = {**inputs, "sae": saved(letter_sae(plm), tmp_path / "other")}
    with pytest.raises(UserError, match="layer 0; the activations are of layer 3"):
        run(tmp_path / "layer", other)
    table = read_sequences(inputs["sequences"])
    (tmp_path / "train").mkdir()
    write_sequences(tmp_path / "train", table[table["split"] == "train"].to_dict(orient="list"))
    with pytest.raises(DataError, match="the test split has no protein"):
        run(tmp_path / "split", {**inputs, "sequences": tmp_path / "train"})


def test_scores_that_are_not_finite_are_refused(
    inputs: dict[str, Path], plm: ProteinLM, store: Path, tmp_path: Path
) -> None:
    sae = random_sae(plm, store)
    sae.W_dec.mul_(1e38)
    with torch.no_grad():
        save(sae, tmp_path / "huge" / "sae")
    with pytest.raises(DataError, match="not finite"):
        run(tmp_path / "out", {**inputs, "sae": tmp_path / "huge"}, latent=9, clamp=1000.0)


@pytest.mark.parametrize(
    "params",
    [
        {"latent": None},
        {"latent": -2},
        {"latent": 1.5},
        {"strength": 1.1},
        {"strength": float("nan")},
        {"clamp": float("inf")},
        {"first_residue": 0},
        {"first_residue": 9, "last_residue": 8},
        {"split": "tests"},
        {"num_random_directions": 0},
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SteerParams(**params)


def test_without_an_activation_store_it_goes_by_the_sae_and_gives_the_same_bytes(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    alone = {name: folder for name, folder in inputs.items() if name != "activations"}
    assert run(tmp_path / "with" / "out", inputs) == run(tmp_path / "alone" / "out", alone)
    for file in (tmp_path / "with" / "out").rglob("*"):
        if file.is_file():
            other = tmp_path / "alone" / file.relative_to(tmp_path / "with")
            assert other.read_bytes() == file.read_bytes(), file


def test_without_an_activation_store_another_model_is_refused_as_well(
    inputs: dict[str, Path], plm: ProteinLM, store: Path, tmp_path: Path
) -> None:
    sae = random_sae(plm, store)
    sae.config = sae.config.replace(plm_revision="sha256:" + 64 * "0")
    folder = saved(sae, tmp_path / "other")
    with pytest.raises(UserError, match="sha256"):
        run(tmp_path / "out", {"sequences": inputs["sequences"], "sae": folder})
