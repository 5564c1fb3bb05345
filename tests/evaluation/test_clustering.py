"""Clustering from proteins to tables: latents that are residue letters, whose scores can be read off a sequence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from plmsae.errors import DataError, UserError
from plmsae.evaluation.clustering import evaluate
from plmsae.evaluation.clustering_pairs import Pairs
from plmsae.evaluation.clustering_sample import PairSample
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.plms.base import ProteinLM
from plmsae.proteins.structure_tables import STRUCTURES_FILE, STRUCTURES_SCHEMA
from plmsae.proteins.tables import read_sequences
from tests.evaluation.conftest import LETTERS, letter_sae, saved

SETTINGS: dict[str, Any] = {
    "splits": ["valid", "test"],
    "structure": True,
    "max_proteins": None,
    "min_coverage": 1.0,
    "threshold": 0.6,
    "min_proteins": 25,
    "sampled_proteins": 100,
    "window": 2,
    "radius": 6.0,
    "separations": [2, 6],
    "num_permutations": None,
    "margin": 0.05,
    "alpha": 0.05,
    "num_resamples": 50,
    "confidence": 0.95,
    "max_tokens": 1024,
    "threads": 1,
    "seed": 0,
}


def _helix(length: int) -> np.ndarray:
    """An ideal alpha helix: 1.5 Å rise, 100 degrees and 2.3 Å radius per Cα; i and i + 4 are 6.2 Å apart."""
    turn = np.deg2rad(100) * np.arange(length)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(length)], axis=1)


def write_structures(folder: Path, table: pd.DataFrame) -> None:
    """Helices for all proteins but the first, and half a helix for the second."""
    rows: dict[str, list[Any]] = {name: [] for name in STRUCTURES_SCHEMA.names}
    for number, (accession, sequence) in enumerate(zip(table["accession"], table["sequence"], strict=True)):
        length = 0 if number == 0 else len(sequence) // 2 if number == 1 else len(sequence)
        for position, place in enumerate(_helix(length)):
            values = (accession, f"AF-{accession}-F1", "A", position, sequence[position], True, *place, 90.0)
            for name, value in zip(STRUCTURES_SCHEMA.names, values, strict=True):
                rows[name].append(value)
    pq.write_table(pa.table(rows, schema=STRUCTURES_SCHEMA), folder / STRUCTURES_FILE)


@pytest.fixture(scope="module")
def inputs(plm: ProteinLM, sequences: Path, embedding_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("structured")
    shutil.copytree(sequences, folder, dirs_exist_ok=True)
    table = read_sequences(folder)
    write_structures(folder, table[table["split"] != "train"])
    return Inputs.load(folder, embedding_store, saved(letter_sae(plm), tmp_path_factory.mktemp("sae")), root=folder)


@pytest.fixture(scope="module")
def found(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    output = tmp_path_factory.mktemp("out")
    return evaluate(inputs, output, **SETTINGS), output


def _differences(sequences: list[str], letter: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequential and helical score minus null of every sequence with the letter, counted from the text."""
    sequential, structural = [], []
    for sequence in sequences:
        anchor = sequence.find(letter)
        if anchor < 0:
            continue
        is_letter = np.array([each == letter for each in sequence], dtype=float)
        apart = abs(np.arange(len(sequence)) - anchor)
        # i + 1, i + 2 and i + 3 are 3.8, 5.4 and 5.0 Å away on the helix, i + 4 is 6.2 Å away.
        near = (apart > 0) & (apart <= 3)
        sequential.append(is_letter[(apart > 0) & (apart <= 2)].mean() - is_letter.mean())
        structural.append(is_letter[near].mean() - is_letter.mean())
    return np.array(sequential), np.array(structural)


def test_every_letter_is_what_its_text_says(inputs: Inputs, found: tuple[Outcome, Path]) -> None:
    outcome, output = found
    proteins = read_sequences(inputs.sequences)
    proteins = proteins[proteins["split"] != "train"].iloc[2:]
    table = pd.read_parquet(output / "latents.parquet").set_index("latent")
    texts = proteins["sequence"].tolist()
    tested = [letter for letter in LETTERS if sum(letter in text for text in texts) >= 25]
    assert [LETTERS[latent] for latent in table.index] == tested
    assert outcome.metrics["num_latents_tested"] == len(tested) > 15
    assert outcome.metrics["num_sequences_left_out"] == 2
    for latent, row in table.iterrows():
        sequential, structural = _differences(texts, LETTERS[int(str(latent))])
        assert row["num_proteins"] == row["num_proteins_above_threshold"] == len(sequential)
        for name, x in (("sequence", sequential), ("structure", structural)):
            reference = stats.ttest_1samp(x, 0)
            assert row[f"{name}_t"] == pytest.approx(reference.statistic, rel=1e-4)
            assert row[f"{name}_p"] == pytest.approx(reference.pvalue, rel=1e-3)
            assert row[f"{name}_p_corrected"] == pytest.approx(min(1, reference.pvalue * len(tested)), rel=1e-3)
            assert row[f"{name}_d"] == pytest.approx(x.mean() / x.std(ddof=1), rel=1e-4)
            assert row[f"{name}_d_low"] < row[f"{name}_d"] < row[f"{name}_d_high"]
        assert row["apart_6_n"] == 0, "nothing of a helix is near and more than six residues away"
        assert row["apart_6_p"] == row["apart_6_permutation_p"] == 1
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    assert json.dumps(dict(outcome.metrics))
    pairs = pd.read_parquet(output / "pairs.parquet")
    letters = proteins.set_index("accession")["sequence"]
    for _, pair in pairs.head(200).iterrows():
        assert letters[pair["accession"]][pair["position"] - 1] == pair["residue"] == LETTERS[pair["latent"]]


def test_threads_do_not_change_a_byte_and_batches_no_number(
    inputs: Inputs, found: tuple[Outcome, Path], tmp_path: Path
) -> None:
    again = evaluate(inputs, tmp_path, **{**SETTINGS, "threads": 2})
    assert again == found[0]
    for name in ("latents.csv", "latents.parquet", "pairs.parquet", "figures/clustering.png"):
        assert (tmp_path / name).read_bytes() == (found[1] / name).read_bytes(), name
    other = tmp_path / "other"
    other.mkdir()
    evaluate(inputs, other, **{**SETTINGS, "max_tokens": 300})
    left, right = (pd.read_parquet(folder / "latents.parquet") for folder in (tmp_path, other))
    pd.testing.assert_frame_equal(left, right, rtol=1e-4)


def test_the_published_permutations(inputs: Inputs, found: tuple[Outcome, Path], tmp_path: Path) -> None:
    """Five permutations scatter about the exact null; they are the same ones whatever the batches."""
    drawn = {**SETTINGS, "num_permutations": 5}
    evaluate(inputs, tmp_path, **drawn)
    exact, five = (pd.read_parquet(folder / "latents.parquet") for folder in (found[1], tmp_path))
    assert (exact["sequence_score"] == five["sequence_score"]).all()
    assert (exact["sequence_null"] != five["sequence_null"]).all()
    assert np.abs(exact["sequence_null"] - five["sequence_null"]).max() < 0.05
    other = tmp_path / "other"
    other.mkdir()
    evaluate(inputs, other, **{**drawn, "max_tokens": 300})
    np.testing.assert_allclose(pd.read_parquet(other / "latents.parquet")["sequence_null"], five["sequence_null"], 1e-4)


def test_without_structures_all_proteins_are_tested_in_sequence(
    inputs: Inputs, sequences: Path, tmp_path: Path
) -> None:
    without = Inputs(sequences, inputs.plm, inputs.sae, inputs.mean, inputs.store)
    outcome = evaluate(without, tmp_path, **{**SETTINGS, "structure": None})
    proteins = read_sequences(sequences)
    texts = proteins.loc[proteins["split"] != "train", "sequence"].tolist()
    table = pd.read_parquet(tmp_path / "latents.parquet").set_index("latent")
    assert outcome.metrics["num_proteins"] == len(texts)
    assert len(table) == outcome.metrics["num_latents_tested"] > 15
    for latent, row in table.iterrows():
        sequential, _ = _differences(texts, LETTERS[int(str(latent))])
        assert row["sequence_n"] == len(sequential)
        assert row["sequence_d"] == pytest.approx(sequential.mean() / sequential.std(ddof=1), rel=1e-4)
    assert not [name for name in (*table.columns, *outcome.metrics) if "structur" in name or "apart" in name]
    assert "Neighbours in structure were not looked at" in outcome.summary
    readable = pd.read_csv(tmp_path / "table.csv")
    assert readable["neighbours"].tolist() == ["within 2 residues"]
    by_test = table["sequence_permutation_p_corrected"] < 0.05
    assert readable["by permutation test"].tolist() == [by_test.sum()]
    forced = evaluate(inputs, tmp_path, **{**SETTINGS, "structure": False})
    assert forced == outcome, "asked not to, it looks at the same proteins"


def test_inputs_that_cannot_be_used(inputs: Inputs, sequences: Path, tmp_path: Path) -> None:
    without = Inputs(sequences, inputs.plm, inputs.sae, inputs.mean, inputs.store)
    with pytest.raises(UserError, match=r"no structures[\s\S]*ingest.alphafold"):
        evaluate(without, tmp_path, **SETTINGS)
    with pytest.raises(UserError, match="ascending"):
        evaluate(inputs, tmp_path, **{**SETTINGS, "separations": []})
    with pytest.raises(DataError, match="none of the"):
        evaluate(inputs, tmp_path, **{**SETTINGS, "min_coverage": 1.1})
    outcome = evaluate(inputs, tmp_path, **{**SETTINGS, "min_proteins": 1000})
    assert outcome.metrics["num_latents_tested"] == 0
    assert "No latent could be tested" in outcome.summary
    assert (tmp_path / "figures" / "clustering.png").is_file()


def _pairs(rows: list[int], latents: list[int], highest: list[float]) -> Pairs:
    number = len(rows)
    ones, wide = np.ones(number), np.ones((number, 1))
    whole = np.ones(number, dtype=np.int64)
    return Pairs(
        np.array(rows),
        np.array(latents),
        whole,
        np.array(highest),
        whole,
        ones,
        ones,
        ones,
        wide.astype(int),
        wide,
        wide,
    )


def test_the_sample_is_of_proteins_in_any_order() -> None:
    """300 proteins, 30 wanted: the same ones in any order, others for another latent, and windows count once."""
    names = [f"P{number // 2:03d}" for number in range(600)]
    offsets = np.arange(600) % 2 * 100
    rng = np.random.default_rng(0)
    highest = rng.random(600)
    chosen = []
    for order in (np.arange(600), rng.permutation(600)):
        sample = PairSample(names, offsets, 3, 30, seed=0)
        for part in np.array_split(order, 7):
            rows = part.tolist()
            sample.add(_pairs(rows * 2, [0] * len(rows) + [2] * len(rows), [*highest[part]] * 2))
        result = sample.result()
        assert result.available.tolist() == [300, 0, 300]
        assert np.bincount(result.pairs.latent).tolist() == [30, 0, 30]
        for row in result.pairs.row:
            assert highest[row] == max(highest[row], highest[row ^ 1]), "the window with the larger activation"
        chosen.append([sorted(result.pairs.row[result.pairs.latent == latent].tolist()) for latent in (0, 2)])
    assert chosen[0] == chosen[1]
    assert chosen[0][0] != chosen[0][1]
    every = np.concatenate([
        PairSample(names, offsets, 1, 30, seed=seed)._protein[_one(names, offsets, seed)] for seed in range(60)
    ])  # fmt: skip
    assert np.bincount(every, minlength=300).max() < 20, "about 6 of 60 draws each"


def _one(names: list[str], offsets: np.ndarray, seed: int) -> np.ndarray:
    sample = PairSample(names, offsets, 1, 30, seed=seed)
    sample.add(_pairs(list(range(600)), [0] * 600, [1.0] * 600))
    return sample.result().pairs.row
