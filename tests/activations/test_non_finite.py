"""Residues whose hidden states do not fit the stored type: refused by name, or left out, counted and listed.

The model's embedding of W (tryptophan) overflows float16, so which rows must go follows from the sequences alone.
"""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from plmsae.activations.blocks import BlockStore
from plmsae.activations.check import check_store
from plmsae.activations.extract import extract
from plmsae.activations.metadata import METADATA, read_metadata
from plmsae.activations.non_finite import describe_masked, find_non_finite
from plmsae.activations.plan import Settings
from plmsae.activations.reader import ActivationReader
from plmsae.errors import DataError
from plmsae.plms import load_plm
from tests.activations.conftest import huge_tryptophan, write_model
from tests.activations.test_extract import SETTINGS as FINITE
from tests.activations.test_extract import SHA256, contents, undisturbed  # noqa: F401

SETTINGS = Settings(
    layer=0, dtype="float16", block_rows=64, max_tokens_per_batch=256, shuffle_pool_rows=500, seed=3, non_finite="mask"
)


@pytest.fixture(scope="session")
def overflowing(tmp_path_factory):
    return load_plm(str(huge_tryptophan(write_model(tmp_path_factory.mktemp("overflowing") / "lm"))))


def run(plm, sequences, folder, name="out", settings=SETTINGS, **more):
    (statistics,) = extract(plm, sequences, folder / name, folder / "ck", settings, sequences_sha256=SHA256, **more)
    return folder / name, statistics


@pytest.fixture(scope="module")
def masked(overflowing, sequences, tmp_path_factory):
    torch.set_num_threads(1)
    return run(overflowing, sequences, tmp_path_factory.mktemp("masked"))


def tryptophans(sequences, split):
    return {
        row.accession: [i for i, letter in enumerate(row.sequence) if letter == "W"]
        for row in sequences[sequences["split"] == split].itertuples()
        if "W" in row.sequence
    }


@pytest.mark.parametrize("split", ["train", "valid"])
def test_what_is_stored_is_everything_else(overflowing, sequences, masked, split):
    stored = torch.cat(list(BlockStore(masked[0], split).rows(1000)))
    chosen = sequences[sequences["split"] == split]["sequence"]
    expected = torch.cat(
        [
            overflowing.hidden(overflowing.tokenize([sequence]), 0)[[letter != "W" for letter in sequence]]
            for sequence in chosen
        ]
    )
    num_w = sum(map(len, tryptophans(sequences, split).values()))
    assert num_w > 5
    assert len(stored) == len(expected) == chosen.str.len().sum() - num_w
    assert sorted(map(tuple, stored.tolist())) == sorted(map(tuple, expected.half().float().tolist()))


def test_counts_and_names(sequences, masked):
    folder, statistics = masked
    metadata = read_metadata(folder)
    found = {split: tryptophans(sequences, split) for split in ("train", "valid")}
    assert metadata.num_masked == {split: sum(map(len, places.values())) for split, places in found.items()}
    assert metadata.num_tokens == {split: int(counted.count) for split, counted in statistics.items()}
    table = pd.read_csv(folder / "masked.csv")
    assert list(table.columns) == ["split", "accession", "first_residue", "num_masked", "num_residues"]
    lengths = sequences.set_index("accession")["sequence"].str.len()
    for split, places in found.items():
        rows = table[table["split"] == split]
        assert {row.accession: (row.first_residue, row.num_masked) for row in rows.itertuples()} == {
            accession: (positions[0] + 1, len(positions)) for accession, positions in places.items()
        }
        assert rows["num_masked"].is_monotonic_decreasing
    assert (table["num_residues"] == table["accession"].map(lengths)).all()
    counts = {accession: len(places) for both in found.values() for accession, places in both.items()}
    worst = sorted(counts, key=lambda accession: (-counts[accession], accession))[:3]
    assert describe_masked(folder).endswith("most of " + ", ".join(f"{name} ({counts[name]})" for name in worst) + ".")
    assert f"{sum(counts.values())} residues of {len(counts)} proteins" in describe_masked(folder)


def test_readers_and_checks_take_it(sequences, masked, tmp_path):
    residues = sequences.assign(length=sequences["sequence"].str.len()).groupby("split")["length"].sum().to_dict()
    table = check_store(masked[0], residues)
    assert table["num_rows"].sum() == sum(read_metadata(masked[0]).num_tokens.values())
    reader = ActivationReader(masked[0], "train", 100, 0, 300)
    steps = range(2 * reader.num_rows // 100)
    assert all(bool(torch.isfinite(reader.batch(step)).all()) for step in steps)
    with pytest.raises(DataError, match=r"rows for \d+ residues, of which \d+ are left out"):
        check_store(masked[0], {**residues, "train": residues["train"] + 1})


def test_nothing_changes_where_nothing_is_masked(plm, sequences, undisturbed, tmp_path):  # noqa: F811
    folder, _ = run(plm, sequences, tmp_path, settings=Settings(**{**vars(FINITE), "non_finite": "mask"}))
    assert contents(folder) == contents(undisturbed[0])
    assert "num_masked" not in json.loads((folder / METADATA).read_text())
    assert describe_masked(folder) == ""


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_extraction_ends_with_the_same_bytes(overflowing, sequences, masked, tmp_path, threads):
    computed = []

    def stop(part):
        computed.append(part.name)
        if len(computed) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(overflowing, sequences, tmp_path, "first", on_part=stop, threads=threads)
    again = []
    folder, _ = run(overflowing, sequences, tmp_path, "second", on_part=lambda part: again.append(part.name))
    assert again
    assert not set(again) & set(computed)
    assert contents(folder) == contents(masked[0])
    record = tmp_path / "ck" / "layer0.residual" / computed[0] / "part.json"
    record.write_text(record.read_text().replace('"residue": ', '"position": '))
    third = []
    folder, _ = run(overflowing, sequences, tmp_path, "third", on_part=lambda part: third.append(part.name))
    assert third == computed[:1]
    assert contents(folder) == contents(masked[0])


def test_parts_of_another_policy_are_not_taken_over(overflowing, sequences, masked, tmp_path):
    run(overflowing, sequences, tmp_path)
    with pytest.raises(DataError, match="not finite in float16"):
        run(overflowing, sequences, tmp_path, "other", Settings(**{**vars(SETTINGS), "non_finite": "refuse"}))


def test_a_part_may_lose_every_row_but_a_split_may_not(overflowing, sequences, tmp_path):
    nothing = pd.DataFrame({"accession": ["W1"], "sequence": ["W" * 40], "split": ["train"]})
    one_each = Settings(**{**vars(SETTINGS), "shuffle_pool_rows": 1})
    folder, _ = run(overflowing, pd.concat([sequences, nothing]), tmp_path, settings=one_each)
    check_store(folder)
    assert pd.read_csv(folder / "masked.csv").iloc[0].tolist() == ["train", "W1", 1, 40, 40]
    table = pd.concat([sequences[sequences["split"] != "train"], nothing])
    with pytest.raises(DataError, match="no residue of split 'train' has hidden states that are finite in float16"):
        run(overflowing, table, tmp_path, "empty")


def test_refusal_names_protein_residue_and_count(overflowing, tmp_path):
    """A window of a protein is counted from the protein's first residue."""
    table = pd.DataFrame(
        {
            "accession": ["P1", "Q2", "V3"],
            "sequence": ["ACDEFGHIKL", "ACWWDEFGHW", "ACDEF"],
            "split": ["train", "train", "valid"],
            "offset": [0, 1000, 0],
        }
    )
    with pytest.raises(DataError, match=r"not finite in float16 \(largest: \d\S+\) on 3 of 10 residues") as caught:
        run(overflowing, table, tmp_path, settings=Settings(layer=0, dtype="float16"))
    assert caught.value.where == "Q2, residue 1003"
    assert "bfloat16" in str(caught.value.fix)
    assert "non_finite: mask" in str(caught.value.fix)
    folder, _ = run(overflowing, table, tmp_path)
    assert pd.read_csv(folder / "masked.csv")["first_residue"].tolist() == [1003]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_the_model_itself_overflows_in(value):
    hidden = torch.zeros(7, 3)
    hidden[4, 1] = hidden[5, 0] = value
    (found,) = find_non_finite(hidden, torch.isfinite(hidden).all(1), ["A", "B"], [0, 10], [3, 4])
    assert (found.accession, found.residue, found.count, found.num_residues, found.largest) == ("B", 12, 2, 4, None)
