"""Families and patterns end to end on the bundled model and real proteins."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from plmsae.errors import UserError
from plmsae.evaluation.activation_patterns import CLASSES
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.patterns import _by_protein, _peaks, evaluate
from plmsae.evaluation.residue_letters import LETTERS
from plmsae.evaluation.top_sequences import Runs
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import read_sequences
from plmsae.saes.base import SparseAutoencoder
from tests.evaluation.conftest import letter_sae, random_sae


def run(plm: ProteinLM, sae: SparseAutoencoder, sequences: Path, store: Path, output: Path, **changed: Any) -> Outcome:
    given: dict[str, Any] = {
        "splits": ["valid", "test"], "max_proteins": None, "families": "domains", "labels": None, "min_members": 2,
        "variant": "plmsae", "num_resamples": 20, "confidence": 0.95, "max_tokens": 2048, "threads": 1, "seed": 42,
    }  # fmt: skip
    output.mkdir(exist_ok=True)
    return evaluate(Inputs(sequences, plm, sae, torch.zeros(plm.d_model), store), output, **(given | changed))


def test_letters_are_points_and_a_family_made_of_one_is_found(
    plm: ProteinLM, sequences: Path, embedding_store: Path, tmp_path: Path
) -> None:
    """Latent j fires on the j-th letter only; the family is: has a tryptophan."""
    table = read_sequences(sequences)
    with_w = table["sequence"].str.contains("W")
    rows = [f"{accession},{'W' if w else ''}" for accession, w in zip(table["accession"], with_w)]
    (tmp_path / "families.csv").write_text("\n".join(["accession,label", *rows]))
    outcome = run(plm, letter_sae(plm), sequences, embedding_store, tmp_path / "out", labels=tmp_path / "families.csv")
    latents = pd.read_parquet(tmp_path / "out" / "latents.parquet").set_index("latent")
    w = latents.loc[LETTERS.index("W")]
    assert w["pattern"] == "point"
    assert (w["family"], w["family_f1"], w["family_specific"]) == ("W", 1.0, True)
    assert (w["family_f1_low"], w["family_f1_high"]) == (1, 1)
    held_out = table[table["split"].isin(["valid", "test"])]
    letters = "".join(held_out["sequence"])
    assert w["share_of_sequences"] == pytest.approx(held_out["sequence"].str.contains("W").mean())
    assert w["share_of_residues"] == pytest.approx(letters.count("W") / len(letters))
    assert outcome.metrics["num_point"] == (latents["pattern"] == "point").sum() >= 15
    assert outcome.metrics["num_families"] == 1
    families = pd.read_parquet(tmp_path / "out" / "families.parquet")
    assert set(families["method"]) == {"sae", "neurons"}


@pytest.mark.parametrize("variant", ["plmsae", "interprot"])
def test_real_families(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path, variant: str) -> None:
    sae = random_sae(plm, store)
    outcome = run(plm, sae, sequences, store, tmp_path / "a", variant=variant)
    latents = pd.read_parquet(tmp_path / "a" / "latents.parquet")
    assert latents["latent"].tolist() == list(range(256))
    assert sum(outcome.metrics[f"num_{name.replace(' ', '_')}"] for name in CLASSES) == 256
    silent = latents["share_of_sequences"] == 0
    assert (latents["pattern"] == "dead").tolist() == silent.tolist()
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    families = pd.read_parquet(tmp_path / "a" / "families.parquet")
    assert not families["family"].str.endswith(": any").any()
    assert (families.groupby(["method", "unit"])["best"].sum() == 1).all()
    if variant == "interprot":
        return
    again = run(plm, sae, sequences, store, tmp_path / "b", variant=variant, threads=2, max_tokens=512)
    assert again == outcome
    for file in ("latents.parquet", "families.csv", "patterns.csv", "figures/patterns.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_clusters_are_families_and_wrong_names_are_refused(
    plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path
) -> None:
    sae = random_sae(plm, store)
    outcome = run(plm, sae, sequences, store, tmp_path / "out", families="clusters", min_members=1)
    assert outcome.metrics["num_families"] == outcome.metrics["num_proteins"], "each protein is a cluster here"
    with pytest.raises(UserError, match="unknown families 'domain'"):
        run(plm, sae, sequences, store, tmp_path / "out", families="domain")
    accession = read_sequences(sequences)["accession"][0]
    (tmp_path / "x.csv").write_text(f"accession,position,label\n{accession},1,a\n")
    with pytest.raises(UserError, match="belong to proteins"):
        run(plm, sae, sequences, store, tmp_path / "out", labels=tmp_path / "x.csv")


def test_a_protein_is_as_strong_as_its_strongest_window() -> None:
    """Three rows of two proteins (rows 0 and 2 are windows of protein 1), in two batches, two units."""
    owners = np.array([1, 0, 1])
    first = Runs.of(sparse.csr_matrix([[0.5, 0.0], [0.2, 0.1], [0.0, 0.3]]), np.array([0, 2, 3]), np.array([0, 1]))
    second = Runs.of(sparse.csr_matrix([[0.4, 0.9]]), np.array([0, 1]), np.array([2]))
    found = _by_protein([_peaks(first), _peaks(second)], owners, (2, 2)).toarray()
    assert found == pytest.approx(np.array([[0.0, 0.3], [0.5, 0.9]]))
