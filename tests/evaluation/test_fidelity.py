"""Fidelity of SAEs whose answer is known, on the bundled model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from plmsae.errors import DataError
from plmsae.evaluation.fidelity import evaluate
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.protocols import masked_rows, single_rows
from plmsae.evaluation.splice import measure
from plmsae.plms.base import Edit, ProteinLM
from plmsae.proteins.tables import write_sequences
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from tests.evaluation.conftest import LAYER, LETTERS, random_sae, sae_config

OPTIONS: dict[str, Any] = {
    "max_proteins": 6,
    "masked_share": 0.15,
    "single_mask_residues": 0,
    "error_term": False,
    "num_resamples": 200,
    "confidence": 0.95,
    "max_tokens": 1024,
    "threads": 1,
    "seed": 0,
}


@pytest.fixture(scope="module")
def inputs(plm: ProteinLM, sequences: Path, store: Path) -> Inputs:
    mean = load_file(store / "statistics.safetensors")["mean"].float()
    return Inputs(sequences, plm, random_sae(plm, store), mean, store)


def constant_sae(plm: ProteinLM, value: torch.Tensor) -> SparseAutoencoder:
    """An SAE without latents that fire: it always reconstructs its bias."""
    sae = build(sae_config(plm, "topk", LAYER, 8, 2)).requires_grad_(False)
    sae.W_enc.zero_()
    sae.b_enc.fill_(-1.0)
    sae.b_dec.copy_(value)
    return sae


def run(inputs: Inputs, sae: SparseAutoencoder, folder: Path, **options: Any) -> Outcome:
    return evaluate(replace(inputs, sae=sae), folder, **{**OPTIONS, **options})


def test_an_exact_reconstruction_costs_nothing(inputs: Inputs, plm: ProteinLM, tmp_path: Path) -> None:
    exact = build(sae_config(plm, "neurons", LAYER, 2 * plm.d_model, plm.d_model))
    exact.initialise(torch.Generator(), center=inputs.mean)
    metrics = run(inputs, exact, tmp_path).metrics
    for protocol in ("masked", "unmasked"):
        assert metrics[f"{protocol}_delta_ce"] == pytest.approx(0, abs=1e-5)
        assert metrics[f"{protocol}_kl"] == pytest.approx(0, abs=1e-6)
        for ablation in ("zero", "mean"):
            assert metrics[f"{protocol}_loss_recovered_{ablation}"] == pytest.approx(100, abs=0.01)
        # There is no error, so a random one of the same length does nothing, and no ratio to it is reported.
        assert metrics[f"{protocol}_kl_random"] == pytest.approx(0, abs=1e-6)
        assert f"{protocol}_kl_ratio" not in metrics
    assert metrics["fvu"] == pytest.approx(0, abs=1e-9)
    assert metrics["l0"] == pytest.approx(plm.d_model, abs=0.01)


def test_an_sae_that_returns_a_constant_is_that_ablation(inputs: Inputs, plm: ProteinLM, tmp_path: Path) -> None:
    zero = run(inputs, constant_sae(plm, torch.zeros(plm.d_model)), tmp_path).metrics
    mean = run(inputs, constant_sae(plm, inputs.mean), tmp_path).metrics
    for protocol in ("masked", "unmasked"):
        assert zero[f"{protocol}_ce_sae"] == pytest.approx(zero[f"{protocol}_ce_zero"], rel=1e-12)
        assert zero[f"{protocol}_loss_recovered_zero"] == pytest.approx(0, abs=1e-9)
        assert mean[f"{protocol}_loss_recovered_mean"] == pytest.approx(0, abs=1e-9)
        assert zero[f"{protocol}_ce_clean"] == mean[f"{protocol}_ce_clean"]
    assert mean["l0"] == 0
    # The mean of the training proteins in place of the test proteins' own: a little worse than their own mean.
    assert 1 <= mean["fvu"] < 1.05


def test_worse_than_the_ablation_is_below_zero_percent(inputs: Inputs, plm: ProteinLM, tmp_path: Path) -> None:
    harmful = constant_sae(plm, -20 * inputs.mean)
    metrics = run(inputs, harmful, tmp_path).metrics
    assert metrics["masked_ce_sae"] > metrics["masked_ce_zero"]
    assert metrics["masked_loss_recovered_zero"] < -5
    assert metrics["masked_loss_recovered_zero_high"] < 0


def test_the_error_term_restores_the_model(inputs: Inputs, tmp_path: Path) -> None:
    metrics = run(inputs, inputs.sae, tmp_path, error_term=True).metrics
    assert abs(metrics["masked_delta_ce"]) > 1e-4
    assert metrics["masked_delta_ce_sae_with_error"] == pytest.approx(0, abs=1e-6)
    assert metrics["unmasked_delta_ce_sae_with_error"] == pytest.approx(0, abs=1e-6)


def test_one_at_a_time_is_a_protocol_of_its_own(inputs: Inputs, tmp_path: Path) -> None:
    outcome = run(inputs, inputs.sae, tmp_path, max_proteins=3, single_mask_residues=4)
    metrics = outcome.metrics
    assert metrics["num_single_residues"] == 12
    assert {"single_delta_ce_low", "single_loss_recovered_mean", "single_kl_ratio"} <= metrics.keys()
    # The other protocols are as without it.
    without = run(inputs, inputs.sae, tmp_path, max_proteins=3).metrics
    assert without.items() <= metrics.items()
    assert not [name for name in without if "single" in name]
    assert "one residue masked at a time" in outcome.summary
    long = pd.read_csv(tmp_path / "cross_entropy.csv")
    assert list(long.columns) == ["hidden_state", "masked", "unmasked"]


def test_tables_agree_with_metrics_and_with_each_other(inputs: Inputs, tmp_path: Path) -> None:
    outcome = run(inputs, inputs.sae, tmp_path)
    metrics = outcome.metrics
    table = pd.read_parquet(tmp_path / "per_sequence.parquet")
    assert len(table) == 6 == metrics["num_proteins"]
    assert table["num_residues"].sum() == metrics["num_residues"]
    assert table["num_masked"].sum() == metrics["num_masked_residues"]
    np.testing.assert_array_equal(table["num_masked"], np.maximum(1, np.floor(0.15 * table["num_unmasked"] + 0.5)))
    error, variation = (table[name] * table["num_residues"] for name in ("mean_squared_error", "variance"))
    assert error.sum() / variation.sum() == pytest.approx(metrics["fvu"], rel=1e-9)
    for protocol in ("masked", "unmasked"):
        weights = table[f"num_{protocol}"]
        for name in ("clean", "sae", "zero", "mean", "random"):
            by_token = np.average(table[f"{protocol}_ce_{name}"], weights=weights)
            assert by_token == pytest.approx(metrics[f"{protocol}_ce_{name}"], rel=1e-12)
        excess = table[f"{protocol}_ce_sae"] - table[f"{protocol}_ce_random"]
        assert np.average(excess, weights=weights) == pytest.approx(metrics[f"{protocol}_excess_ce"], rel=1e-9)
        kl = [np.average(table[f"{protocol}_kl_{name}"], weights=weights) for name in ("sae", "random")]
        assert metrics[f"{protocol}_kl_ratio"] == pytest.approx(kl[0] / kl[1], rel=1e-9)
        delta = table[f"{protocol}_ce_sae"] - table[f"{protocol}_ce_clean"]
        assert delta.mean() == pytest.approx(metrics[f"{protocol}_delta_ce_per_sequence"], rel=1e-9)
        ablated, clean, ours = (metrics[f"{protocol}_ce_{name}"] for name in ("mean", "clean", "sae"))
        assert metrics[f"{protocol}_loss_recovered_mean"] == pytest.approx(100 * (ablated - ours) / (ablated - clean))
        assert (
            metrics[f"{protocol}_delta_ce_low"] < metrics[f"{protocol}_delta_ce"] < metrics[f"{protocol}_delta_ce_high"]
        )
    long = pd.read_csv(tmp_path / "fidelity.csv").set_index(["protocol", "per", "quantity"])
    row = long.loc[("masked", "token", "loss_recovered_mean")]
    assert row["value"] == pytest.approx(metrics["masked_loss_recovered_mean"], rel=1e-5)
    for name in ("fidelity", "amino_acids"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
    letters = pd.read_csv(tmp_path / "amino_acids.csv")
    for protocol in ("masked", "unmasked"):
        rows = letters[(letters["protocol"] == protocol) & (letters["quantity"] == "ce_sae")]
        assert rows["amino_acid"].tolist() == list(LETTERS)
        assert rows["num_residues"].sum() == table[f"num_{protocol}"].sum()
        found = rows[rows["num_residues"] > 0]
        by_letter = np.average(found["value"], weights=found["num_residues"])
        assert by_letter == pytest.approx(metrics[f"{protocol}_ce_sae"], rel=1e-5)
    assert f"{metrics['masked_ce_clean']:.3f}" in outcome.summary


def test_the_numbers_are_those_of_the_definitions(inputs: Inputs, plm: ProteinLM) -> None:
    """One sequence at a time, with torch's own losses and the positions written out."""
    sequences, keys = ["MKTAYIAKQRXISFVKSHFSRQ", "MSHHWGYGKHNGPEHWHKDFPIAKG"], ["a", "b"]
    settings = {"masked_share": 0.3, "single_mask_residues": 5, "error_term": False, "max_tokens": 60, "seed": 4}
    sums = measure(plm, inputs.sae, inputs.mean, sequences, keys, **settings).of_sequence
    for place, (sequence, key) in enumerate(zip(sequences, keys, strict=True)):
        letters = np.array(list(sequence))
        scored = np.isin(letters, list(LETTERS))
        chosen = masked_rows([key], scored, np.array([0, len(sequence)]), 0.3, 4)
        assert sums["masked_num"][place] == len(chosen) == round(0.3 * scored.sum())
        targets = torch.tensor([plm.vocabulary[letter] for letter in sequence])
        singles = single_rows([key], scored, np.array([0, len(sequence)]), 5, 4)
        alone = [plm.with_masked(plm.tokenize([sequence]), torch.tensor([row])) for row in singles]
        for edit, name in ((None, "clean"), (Edit(LAYER, "residual", inputs.sae), "sae")):
            scores = torch.stack([plm.logits(tokens, edit)[row] for tokens, row in zip(alone, singles, strict=True)])
            loss = torch.nn.functional.cross_entropy(scores.double(), targets[singles], reduction="sum")
            assert sums[f"single_ce_{name}"][place] == pytest.approx(loss.item(), rel=1e-5)
        assert sums["single_num"][place] == len(singles) == 5
        for protocol, rows in (("masked", chosen), ("unmasked", np.flatnonzero(scored))):
            tokens = plm.tokenize([sequence])
            if protocol == "masked":
                tokens = plm.with_masked(tokens, torch.from_numpy(rows))
            clean = plm.logits(tokens)[rows].double()
            loss = torch.nn.functional.cross_entropy(clean, targets[rows], reduction="sum")
            assert sums[f"{protocol}_ce_clean"][place] == pytest.approx(loss.item(), rel=1e-5)
            edited = plm.logits(tokens, Edit(LAYER, "residual", inputs.sae))[rows].double()
            loss = torch.nn.functional.cross_entropy(edited, targets[rows], reduction="sum")
            assert sums[f"{protocol}_ce_sae"][place] == pytest.approx(loss.item(), rel=1e-5)
            gap = torch.nn.functional.kl_div(
                edited.log_softmax(1), clean.log_softmax(1), reduction="sum", log_target=True
            )
            assert sums[f"{protocol}_kl_sae"][place] == pytest.approx(gap.item(), rel=1e-4, abs=1e-7)
        x = plm.hidden(plm.tokenize([sequence]), LAYER)
        assert sums["squared_error"][place] == pytest.approx((x - inputs.sae(x)).square().sum().item(), rel=1e-4)
        np.testing.assert_allclose(sums["total"][place], x.sum(0).numpy(), rtol=1e-3, atol=1e-3)


def test_batches_do_not_matter(inputs: Inputs, tmp_path: Path) -> None:
    for tokens in (300, 4096):
        (tmp_path / str(tokens)).mkdir()
        run(inputs, inputs.sae, tmp_path / str(tokens), max_tokens=tokens, single_mask_residues=2)
    small, large = (pd.read_parquet(tmp_path / str(tokens) / "per_sequence.parquet") for tokens in (300, 4096))
    pd.testing.assert_frame_equal(small, large, rtol=1e-4, atol=1e-6)


def test_threads_do_not_matter(inputs: Inputs, tmp_path: Path) -> None:
    assert run(inputs, inputs.sae, tmp_path, threads=3, max_tokens=300) == run(
        inputs, inputs.sae, tmp_path, threads=1, max_tokens=300
    )


def test_a_subset_is_seeded_and_sorted(inputs: Inputs) -> None:
    table = inputs.split("test", 4, 0)
    assert len(table) == 4
    assert table["accession"].is_monotonic_increasing
    assert inputs.split("test", 4, 0).equals(table)
    assert set(inputs.split("test", 4, 1)["accession"]) != set(table["accession"])
    assert len(inputs.split("test", None, 0)) == len(inputs.split("test", 10_000, 0)) == 40


def test_windows_of_a_protein_are_resampled_together(inputs: Inputs, tmp_path: Path) -> None:
    """Two windows of one protein are one unit: there is nothing to resample, so the interval is the value."""
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVK"
    write_sequences(
        tmp_path,
        {
            "accession": ["P", "P"],
            "offset": [0, 40],
            "sequence": [sequence[:40], sequence[40:]],
            "length": [40, 20],
            "cluster": ["P", "P"],
            "split": ["test", "test"],
            "name": ["", ""],
        },
    )
    metrics = run(replace(inputs, sequences=tmp_path), inputs.sae, tmp_path).metrics
    assert metrics["num_proteins"] == 1
    assert len(pd.read_parquet(tmp_path / "per_sequence.parquet")) == 2
    assert metrics["unmasked_delta_ce_low"] == pytest.approx(metrics["unmasked_delta_ce"], rel=1e-12)
    assert metrics["unmasked_delta_ce_high"] == pytest.approx(metrics["unmasked_delta_ce"], rel=1e-12)


def test_a_sequence_without_amino_acids_is_refused(inputs: Inputs, plm: ProteinLM) -> None:
    with pytest.raises(DataError, match="none of the 20 amino acids") as caught:
        measure(
            plm,
            inputs.sae,
            inputs.mean,
            ["MKV", "XXX"],
            ["good", "bad"],
            masked_share=0.15,
            single_mask_residues=0,
            error_term=False,
            max_tokens=100,
            seed=0,
        )
    assert caught.value.where == "bad"
