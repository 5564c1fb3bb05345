"""InterPLM's numbers inside the concept evaluation: its files, its scale, and tables that do not fit."""

from __future__ import annotations

import dataclasses
import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from plmsae.errors import DataError, UserError
from plmsae.evaluation import concept_data, concepts
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.interplm_compat import Options, evaluate
from plmsae.evaluation.interplm_labels import COLUMNS, label_values, subtypes
from plmsae.plms.base import ProteinLM
from tests.evaluation.conftest import LETTERS, letter_sae
from tests.workspace import FIXTURE

THRESHOLDS = [0.0, 0.15, 0.5, 0.6, 0.8]
OPTIONS = Options(FIXTURE, min_instances=5, min_residues=100, min_domains=5, normalised=False)


@pytest.fixture(scope="module")
def letters(plm: ProteinLM, sequences: Path, embedding_store: Path) -> Inputs:
    """Latents that are the letters, at a scale of their own: 0.4 on the letter, which is their maximum."""
    sae = letter_sae(plm)
    sae.W_enc.mul_(0.4)
    sae.latent_max.fill_(0.4)
    mean = load_file(embedding_store / "statistics.safetensors")["mean"].float()
    return Inputs(sequences, plm, sae, mean, embedding_store)


@pytest.fixture(scope="module")
def data(letters: Inputs) -> ConceptData:
    return concept_data.load(letters, max_proteins=None, min_instances=5, min_proteins=3, max_tokens=1024, seed=0)


def run(inputs: Inputs, data: ConceptData, output: Path, options: Options = OPTIONS) -> Outcome:
    return evaluate(inputs, (data.valid, data.test), output, options, thresholds=THRESHOLDS, threads=1)


def test_a_letter_latent_has_its_letter_as_concept(letters: Inputs, data: ConceptData, tmp_path: Path) -> None:
    outcome = run(letters, data, tmp_path)
    scores = pd.read_parquet(tmp_path / "interplm_scores_test.parquet")
    text = "".join(data.test.proteins["sequence"])
    for letter in "AL":
        of = scores[(scores["concept"] == f"amino_acid_{letter}") & (scores["feature"] == LETTERS.index(letter))]
        # Active at 0.4: above 0 and 0.15, and at no higher threshold.
        assert of["threshold_pct"].tolist() == [0.0, 0.15]
        assert of["f1_per_domain"].tolist() == [1.0, 1.0]
        assert of["tp"].tolist() == [text.count(letter)] * 2
    best = pd.read_csv(tmp_path / "interplm_best.csv")
    assert not best["concept"].str.contains("amino_acid").any()
    assert outcome.metrics["interplm_average_best_f1"] == pytest.approx(best["f1_per_domain"].mean(), rel=1e-14)
    assert outcome.metrics["interplm_num_concepts_in_mean"] == len(best) > 5
    assert "defects included" in outcome.summary


def test_the_normalised_scale_reaches_all_thresholds(letters: Inputs, data: ConceptData, tmp_path: Path) -> None:
    run(letters, data, tmp_path, replace(OPTIONS, normalised=True))
    scores = pd.read_parquet(tmp_path / "interplm_scores_test.parquet")
    of = scores[(scores["concept"] == "amino_acid_A") & (scores["feature"] == 0)]
    assert of["threshold_pct"].tolist() == THRESHOLDS
    assert of["f1"].tolist() == [1.0] * 5


def test_thresholds_without_any_true_positive_give_no_mean(letters: Inputs, data: ConceptData, tmp_path: Path) -> None:
    outcome = evaluate(letters, (data.valid, data.test), tmp_path, OPTIONS, thresholds=[0.9], threads=1)
    assert "interplm_average_best_f1" not in outcome.metrics
    assert outcome.metrics["interplm_num_pairs"] == 0
    assert "not defined" in outcome.summary
    assert pd.read_csv(tmp_path / "interplm_best.csv").empty


@pytest.mark.parametrize(("min_instances", "own"), [(5, "mean_f1_sae"), (10_000, "num_concepts_left_out")])
def test_the_concept_evaluation_reports_them_beside_its_own(
    min_instances: int, own: str, letters: Inputs, data: ConceptData, tmp_path: Path
) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    both.mkdir()
    alone.mkdir()
    theirs: dict[str, Any] = {f"interplm_{name}": value for name, value in dataclasses.asdict(OPTIONS).items()}
    found = concepts.evaluate(
        letters,
        both,
        max_proteins=None,
        min_instances=min_instances,  # 10,000 leaves none of our own concepts
        min_proteins=3,
        thresholds=THRESHOLDS,
        concepts_per_latent=1,
        num_resamples=2,
        confidence=0.95,
        max_tokens=1024,
        threads=1,
        seed=0,
        **theirs,
    )
    expected = run(letters, data, alone)
    assert {name: value for name, value in found.metrics.items() if name.startswith("interplm_")} == expected.metrics
    assert own in found.metrics
    assert found.summary.endswith(f" {expected.summary}")
    for path in alone.iterdir():
        assert (both / path.name).read_bytes() == path.read_bytes()
    assert (both / "concepts.parquet").is_file()


def edited(folder: Path, change: object) -> Options:
    table = pd.read_csv(FIXTURE, sep="\t", dtype=object)
    path = folder / "table.tsv"
    change(table).to_csv(path, sep="\t", index=False)  # type: ignore[operator]
    return replace(OPTIONS, table=path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.drop(columns="Cofactor"), "column 'Cofactor' is missing"),
        (lambda table: table.iloc[3:], "has no row of"),
        (lambda table: table.assign(Sequence=table["Sequence"] + "A"), "another sequence"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    change: object, problem: str, letters: Inputs, data: ConceptData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        run(letters, data, tmp_path, edited(tmp_path, change))


def test_a_file_that_is_no_table_is_refused(letters: Inputs, data: ConceptData, tmp_path: Path) -> None:
    path = tmp_path / "cut.tsv.gz"
    path.write_bytes(gzip.compress(b"Entry\tSequence\n" * 500)[:40])
    with pytest.raises(DataError, match="cannot be read"):
        run(letters, data, tmp_path, replace(OPTIONS, table=path))


def test_windows_are_refused(letters: Inputs, data: ConceptData, tmp_path: Path) -> None:
    twice = replace(data.valid, proteins=pd.concat([data.valid.proteins, data.valid.proteins.iloc[:1]]))
    with pytest.raises(UserError, match="several windows"):
        evaluate(letters, (twice, data.test), tmp_path, OPTIONS, thresholds=THRESHOLDS, threads=1)


def protein(cell: str, column: str = "Domain [FT]") -> pd.DataFrame:
    """One protein of 20 residues with one cell."""
    row = dict.fromkeys(COLUMNS) | {"Entry": "P1", "Sequence": "ACDEFGHIKLMNPQRSTVWY", column: cell}
    return pd.DataFrame([row]).astype(object)


def test_labels_by_hand() -> None:
    table = protein('DOMAIN 2..6; /note="A"; DOMAIN 5..8; /note="B"; DOMAIN 8..9; /note="A"; DOMAIN 1; /evidence="x"')
    found = label_values(table, {"Domain [FT]": ["A", "any"]}).toarray()
    assert found[:10, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 2, 2, 0]
    assert found[:10, 1].tolist() == [0, 1, 1, 1, 1, 1, 0, 2, 2, 0]
    found = label_values(table, {"Domain [FT]": ["A", "B", "any"]}).toarray()
    assert found[:10, 1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert found[:10, 2].tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 0]


def test_subtypes_count_pieces_of_locations_where_the_word_is_missing() -> None:
    table = protein('SIGNAL 1..22; /evidence="ECO:0000255"', "Signal peptide")
    assert subtypes(table, 1)["Signal peptide"] == ["22", "any"]
    assert label_values(table, {"Signal peptide": ["22", "any"]}).toarray()[:, :2].sum() == 0
