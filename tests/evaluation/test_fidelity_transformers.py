"""Fidelity on tiny random models, against the classes of transformers: a causal model, and masks one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from plmsae.evaluation.fidelity import evaluate
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.selection import fidelity_scores
from plmsae.evaluation.splice import measure, random_directions
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import write_sequences
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from tests.evaluation.conftest import LETTERS, sae_config
from tests.plms import tiny

PLACE = 2
SETTINGS: dict[str, Any] = {
    "masked_share": 0.3,
    "single_mask_residues": 4,
    "error_term": False,
    "max_tokens": 50,
    "seed": 3,
}
SEQUENCES, KEYS = ["MKTAYIAKQRXISFVK", "SHFSRQL", "MWCDE"], ["a:0", "b:0", "c:0"]


def loaded(folder: Path, make: Callable[[Path], tiny.Library]) -> tuple[ProteinLM, tiny.Library, SparseAutoencoder]:
    folder.mkdir()
    library = make(folder)
    plm = load_plm(str(folder))
    sae = build(sae_config(plm, "topk", PLACE, 60, 5), seed=1).requires_grad_(False)
    return plm, library, sae


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProteinLM, tiny.Library, SparseAutoencoder]:
    return loaded(tmp_path_factory.mktemp("models") / "codegen", tiny.codegen)


def scores(model: nn.Module, block: nn.Module, ids: Tensor, first: int, size: int, new: Any) -> Tensor:
    """Log probabilities [tokens, V] of one sequence whose states after `block` go through `new` at its residues."""

    def after(_module: nn.Module, _inputs: object, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        edited = states.clone()
        edited[0, first : first + size] = new(states[0, first : first + size])
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = block.register_forward_hook(after)
    try:
        with torch.no_grad():
            return model(input_ids=ids[None]).logits[0].double().log_softmax(1)
    finally:
        handle.remove()


def interventions(sae: SparseAutoencoder, mean: Tensor, directions: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "clean": lambda x: x,
        "sae": sae,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.expand_as(x),
        "random": lambda x: x + (x - sae(x)).norm(dim=1, keepdim=True) * directions,
    }


def test_a_causal_model_is_scored_on_the_next_residue(
    causal: tuple[ProteinLM, tiny.Library, SparseAutoencoder],
) -> None:
    plm, library, sae = causal
    mean = torch.linspace(-1, 1, plm.d_model)
    found = measure(plm, sae, mean, SEQUENCES, KEYS, **SETTINGS)
    assert {name.split("_")[0] for name in found.of_letter} == {"causal"}
    for place, (sequence, key) in enumerate(zip(SEQUENCES, KEYS, strict=True)):
        ids = torch.tensor([plm.vocabulary["1"], *(plm.vocabulary[letter] for letter in sequence)])
        directions = random_directions([key], [len(sequence)], plm.d_model, 3)
        block = library.model.transformer.h[PLACE - 1]
        rows = [row for row in range(1, len(sequence)) if sequence[row] in LETTERS]
        assert found.of_sequence["causal_num"][place] == len(rows)
        logs = {
            name: scores(library.model, block, ids, 1, len(sequence), new)
            for name, new in interventions(sae, mean, directions).items()
        }
        for name, log in logs.items():
            # The scores at token t are of token t + 1; residue r is token r + 1.
            ce = torch.tensor([-log[row, ids[row + 1]] for row in rows])
            assert found.of_sequence[f"causal_ce_{name}"][place] == pytest.approx(float(ce.sum()), rel=1e-5)
            by_letter = np.zeros(20)
            for value, row in zip(ce.tolist(), rows, strict=True):
                by_letter[LETTERS.index(sequence[row])] += value
            np.testing.assert_allclose(found.of_letter[f"causal_ce_{name}"][place], by_letter, rtol=1e-4, atol=1e-6)
            if name != "clean":
                clean = logs["clean"][rows]
                kl = (clean.exp() * (clean - log[rows])).sum()
                assert found.of_sequence[f"causal_kl_{name}"][place] == pytest.approx(float(kl), rel=1e-4, abs=1e-6)


def test_masked_one_at_a_time_is_a_pass_of_its_own_for_each_residue(tmp_path: Path) -> None:
    plm, library, sae = loaded(tmp_path / "esm2", tiny.esm2)
    mean = torch.linspace(-1, 1, plm.d_model)
    found = measure(plm, sae, mean, SEQUENCES, KEYS, **{**SETTINGS, "single_mask_residues": 99})
    for place, (sequence, key) in enumerate(zip(SEQUENCES, KEYS, strict=True)):
        directions = random_directions([key], [len(sequence)], plm.d_model, 3)
        block = library.model.esm.encoder.layer[PLACE - 1]
        rows = [row for row, letter in enumerate(sequence) if letter in LETTERS]
        assert found.of_sequence["single_num"][place] == len(rows)
        for name, new in interventions(sae, mean, directions).items():
            total = 0.0
            for row in rows:
                ids = plm.tokenize([sequence]).ids.clone()
                true = int(ids[row + 1])
                ids[row + 1] = 32
                total -= float(scores(library.model, block, ids, 1, len(sequence), new)[row + 1, true])
            assert found.of_sequence[f"single_ce_{name}"][place] == pytest.approx(total, rel=1e-5), name


def test_the_evaluation_of_a_causal_model(
    causal: tuple[ProteinLM, tiny.Library, SparseAutoencoder], tmp_path: Path
) -> None:
    plm, _, sae = causal
    rng = np.random.default_rng(0)
    names = [f"P{number}" for number in range(8)]
    proteins = ["".join(rng.choice(list(LETTERS), length)) for length in rng.integers(20, 60, 8)]
    columns: dict[str, list[Any]] = {
        "accession": names,
        "offset": [0] * 8,
        "sequence": proteins,
        "length": [len(sequence) for sequence in proteins],
        "cluster": names,
        "split": ["test"] * 6 + ["valid"] * 2,
        "name": [""] * 8,
    }
    write_sequences(tmp_path, columns)
    inputs = Inputs(tmp_path, plm, sae, torch.zeros(plm.d_model), tmp_path)
    options = {"num_resamples": 100, "confidence": 0.9, "max_proteins": None, "threads": 1, **SETTINGS}
    outcome = evaluate(inputs, tmp_path, **options)
    metrics = outcome.metrics
    assert metrics["num_causal_residues"] == sum(len(sequence) - 1 for sequence in proteins[:6])
    assert not [name for name in metrics if "masked" in name or "single" in name]
    # The mean is zero, so both ablations are one.
    assert metrics["causal_loss_recovered_mean"] == pytest.approx(metrics["causal_loss_recovered_zero"])
    assert metrics["causal_ce_random"] != metrics["causal_ce_sae"]
    table = pd.read_csv(tmp_path / "fidelity.csv")
    assert set(table["protocol"]) == {"causal", "unmasked"}
    assert set(table.loc[table["protocol"] == "unmasked", "quantity"]) == {"fvu", "l0"}
    plot = pd.read_csv(tmp_path / "cross_entropy.csv")
    assert plot[["masked", "unmasked"]].isna().all().all()
    assert plot["causal"].notna().all()
    assert f"next-residue cross-entropy from {metrics['causal_ce_clean']:.3f}" in outcome.summary
    chosen = fidelity_scores(
        inputs, {"one": sae, "none": none(plm)}, max_proteins=None, masked_share=0.15, max_tokens=99, threads=1, seed=0
    )
    assert chosen["none"] == pytest.approx(0, abs=1e-9)
    assert chosen["one"] != chosen["none"]


def none(plm: ProteinLM) -> SparseAutoencoder:
    """An SAE without latents that fire: its reconstruction is zero, the mean of the inputs above."""
    sae = build(sae_config(plm, "topk", PLACE, 8, 2)).requires_grad_(False)
    sae.W_enc.zero_()
    sae.b_enc.fill_(-1.0)
    sae.b_dec.zero_()
    return sae
