"""What ends up in a store, and that an interrupted extraction ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from plmsae.activations.blocks import BlockStore
from plmsae.activations.check import check_store
from plmsae.activations.extract import extract
from plmsae.activations.metadata import read_metadata
from plmsae.activations.plan import Settings, plan_parts
from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from tests.activations.conftest import huge_tryptophan, write_model

SETTINGS = Settings(layer=1, block_rows=64, max_tokens_per_batch=256, shuffle_pool_rows=500, seed=3)
SHA256 = "5" * 64


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(plm, sequences, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    (statistics,) = extract(plm, sequences, folder / "out", folder / "checkpoints", SETTINGS, sequences_sha256=SHA256)
    return folder / "out", statistics


def expected_rows(plm, sequences, split, dtype=torch.bfloat16):
    """Row by row from one protein at a time, [n, d]."""
    chosen = sequences[sequences["split"] == split]["sequence"]
    return torch.cat([plm.hidden(plm.tokenize([sequence]), SETTINGS.layer) for sequence in chosen]).to(dtype).float()


def stored_rows(folder, split):
    return torch.cat(list(BlockStore(folder, split).rows(1000)))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_rows_are_those_of_every_residue(plm, sequences, undisturbed, split):
    stored, expected = stored_rows(undisturbed[0], split), expected_rows(plm, sequences, split)
    assert stored.shape == expected.shape
    # Each stored row is the nearest to exactly one expected row; a batch may round a value the other way.
    distances = torch.cdist(stored.double(), expected.double())
    nearest = distances.argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(expected)))
    assert distances.min(1).values.max() < 0.02


def test_test_proteins_are_not_stored(sequences, undisturbed):
    metadata = read_metadata(undisturbed[0])
    lengths = sequences.groupby("split")["sequence"].agg(lambda column: column.str.len().sum())
    assert metadata.num_tokens == {"train": lengths["train"], "valid": lengths["valid"]}
    assert sorted(path.name for path in undisturbed[0].iterdir()) == [
        "statistics.safetensors",
        "store.json",
        "train",
        "valid",
    ]


def test_description(plm, undisturbed):
    metadata = read_metadata(undisturbed[0])
    assert (metadata.plm, metadata.plm_revision) == (plm.name, plm.revision)
    assert (metadata.layer, metadata.hook, metadata.dtype, metadata.d_model) == (1, "residual", "bfloat16", 8)
    assert metadata.sequences_sha256 == SHA256


def test_statistics_are_those_of_the_stored_train_rows(undisturbed):
    folder, statistics = undisturbed
    rows = stored_rows(folder, "train").double().numpy()
    tensors = load_file(folder / "statistics.safetensors")
    np.testing.assert_allclose(tensors["mean"].numpy(), rows.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tensors["second_moment"].numpy(), (rows**2).mean(0), rtol=1e-12)
    scale = read_metadata(folder).normaliser.scale
    assert scale == pytest.approx(np.sqrt((rows**2).sum(1).mean()), rel=1e-12)
    assert ((rows / scale) ** 2).sum(1).mean() == pytest.approx(1)
    assert int(tensors["norm_histogram"].sum()) == len(rows)
    assert int(statistics["valid"].count) == len(stored_rows(folder, "valid"))


def test_rows_are_shuffled_across_proteins(plm, sequences, undisturbed):
    chosen = sequences[sequences["split"] == "train"]["sequence"]
    owner = np.repeat(np.arange(len(chosen)), chosen.str.len())
    nearest = torch.cdist(stored_rows(undisturbed[0], "train"), expected_rows(plm, sequences, "train")).argmin(1)
    owners = owner[nearest.numpy()]
    assert (owners[1:] == owners[:-1]).mean() < 0.3  # about 1 / proteins per part; 0.98 in file order
    assert len(set(owners[:64])) >= 5


def test_parts_are_even_and_hold_each_protein_once(sequences):
    parts = plan_parts(sequences, "train", SETTINGS)
    names = [accession for part in parts for accession in part.accessions]
    chosen = sequences[sequences["split"] == "train"]
    assert sorted(names) == sorted(chosen["accession"])
    assert names != list(chosen["accession"])
    assert [part.number for part in parts] == list(range(-(-chosen["sequence"].str.len().sum() // 500)))
    assert max(part.num_rows for part in parts) <= 500 + 120
    assert min(part.num_rows for part in parts) >= 200
    assert len({part.shuffle_seed for part in parts}) == len(parts)
    other = plan_parts(sequences, "train", Settings(layer=1, shuffle_pool_rows=500, seed=4))
    assert other[0].accessions != parts[0].accessions


def test_a_pool_smaller_than_every_protein(plm, sequences, tmp_path):
    settings = Settings(layer=1, block_rows=7, shuffle_pool_rows=1, max_tokens_per_batch=16)
    extract(plm, sequences, tmp_path / "out", tmp_path / "checkpoints", settings, sequences_sha256=SHA256)
    table = check_store(tmp_path / "out")
    assert (table["split"] == "train").sum() == 28  # a part per protein


def test_threads_do_not_change_the_bytes(plm, sequences, undisturbed, tmp_path):
    extract(plm, sequences, tmp_path / "out", tmp_path / "ck", SETTINGS, sequences_sha256=SHA256, threads=3)
    assert contents(tmp_path / "out") == contents(undisturbed[0])


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_an_interrupted_extraction_goes_on_where_it_was(plm, sequences, undisturbed, tmp_path, stop_after):
    computed = []

    def stop(part):
        computed.append(part.name)
        if len(computed) == stop_after:
            raise KeyboardInterrupt

    arguments = (plm, sequences, tmp_path / "first", tmp_path / "checkpoints", SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        extract(*arguments, sequences_sha256=SHA256, on_part=stop)
    assert not (tmp_path / "first").exists()
    again = []
    arguments = (plm, sequences, tmp_path / "second", tmp_path / "checkpoints", SETTINGS)
    extract(*arguments, sequences_sha256=SHA256, on_part=lambda part: again.append(part.name))
    assert len(computed) == stop_after
    assert not set(computed) & set(again)
    assert contents(tmp_path / "second") == contents(undisturbed[0])


def test_damaged_and_foreign_parts_are_made_again(plm, sequences, undisturbed, tmp_path):
    def run(output, settings=SETTINGS):
        computed = []
        extract(
            plm,
            sequences,
            tmp_path / output,
            tmp_path / "checkpoints",
            settings,
            sequences_sha256=SHA256,
            on_part=lambda part: computed.append(part.name),
        )
        return computed

    everything = run("a")
    assert run("b") == []
    chunk = tmp_path / "checkpoints" / "layer1.residual" / everything[0] / "chunk-0-0.bin"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.unlink()  # it is linked into the stores
    chunk.write_bytes(bytes(data))
    (tmp_path / "checkpoints" / "layer1.residual" / everything[1] / "statistics.safetensors").unlink()
    (tmp_path / "checkpoints" / "layer1.residual" / everything[2] / "part.json").write_text("{")
    assert run("c") == everything[:3]
    assert run("d", Settings(**{**vars(SETTINGS), "layer": 2})) == everything
    for output in ("a", "b", "c"):
        assert contents(tmp_path / output) == contents(undisturbed[0])


PROGRAM = """
import json, sys, time
from pathlib import Path
import pandas as pd
from plmsae.activations.extract import extract
from plmsae.plms import load_plm
from plmsae.activations.plan import Settings
from tests.activations.test_extract import SHA256
root, settings = Path(sys.argv[1]), Settings(**json.loads(sys.argv[2]))
def pause(part):
    print(part.name, flush=True)
    time.sleep(0.2)
extract(load_plm("lm", root=root), pd.read_parquet(root / "sequences.parquet"), root / "out", root / "checkpoints",
        settings, sequences_sha256=SHA256, on_part=pause)
"""


@pytest.mark.parametrize("masking", [False, True])
def test_kill_at_a_random_instant(sequences, tmp_path, masking):
    settings = SETTINGS
    write_model(tmp_path / "lm")
    if masking:
        huge_tryptophan(tmp_path / "lm")
        settings = Settings(**{**vars(SETTINGS), "layer": 0, "dtype": "float16", "non_finite": "mask"})
    sequences.to_parquet(tmp_path / "sequences.parquet")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(vars(settings))]
    process = subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "train-00000"
    time.sleep(float(np.random.default_rng().uniform(0, 0.5)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    plm = load_plm("lm", root=tmp_path)
    computed = []
    extract(
        plm,
        sequences,
        tmp_path / "resumed",
        tmp_path / "checkpoints",
        settings,
        sequences_sha256=SHA256,
        on_part=lambda part: computed.append(part.name),
    )
    assert "train-00000" not in computed
    extract(plm, sequences, tmp_path / "straight", tmp_path / "other", settings, sequences_sha256=SHA256)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "straight")
    assert (tmp_path / "resumed" / "masked.csv").exists() == masking


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split_is_named(plm, sequences, tmp_path, split):
    with pytest.raises(DataError, match=f"no sequences in split '{split}'"):
        extract(
            plm,
            sequences[sequences["split"] != split],
            tmp_path / "out",
            tmp_path / "checkpoints",
            SETTINGS,
            sequences_sha256=SHA256,
        )


def test_layer_out_of_range(plm, sequences, tmp_path):
    with pytest.raises(UserError, match="has no layer 3"):
        extract(plm, sequences, tmp_path / "o", tmp_path / "c", Settings(layer=3), sequences_sha256=SHA256)


def test_blocks_beyond_the_offsets_of_a_chunk(plm, sequences, tmp_path):
    settings = Settings(layer=1, block_rows=2**28)  # of 8 values of 2 bytes
    with pytest.raises(UserError, match=r"268435456 rows would take 4.0 GiB(.|\n)*use at most 134217728"):
        extract(plm, sequences, tmp_path / "o", tmp_path / "c", settings, sequences_sha256=SHA256)


@pytest.mark.parametrize(
    ("sequence", "problem"), [("ACDJ", "'J' is not a residue letter"), ("A" * 301, "301 residues is longer than")]
)
def test_a_sequence_that_the_model_cannot_take_is_named(plm, sequences, tmp_path, sequence, problem):
    table = pd.concat([sequences, pd.DataFrame([{"accession": "Q99999", "sequence": sequence, "split": "train"}])])
    with pytest.raises(DataError, match=problem) as caught:
        extract(plm, table, tmp_path / "o", tmp_path / "c", SETTINGS, sequences_sha256=SHA256)
    assert "Q99999" in str(caught.value.where)


def test_overflow_of_float16_names_the_protein_and_the_way_out(sequences, tmp_path):
    plm = load_plm(str(write_model(tmp_path / "lm", scale=3e5)))
    settings = {**vars(SETTINGS), "layer": 0}
    with pytest.raises(DataError, match=r"not finite in float16 \(largest: \d") as caught:
        extract(
            plm,
            sequences,
            tmp_path / "o",
            tmp_path / "c",
            Settings(**{**settings, "dtype": "float16"}),
            sequences_sha256=SHA256,
        )
    assert str(caught.value.where).split(",")[0] in set(sequences["accession"])
    assert "bfloat16" in str(caught.value.fix)
    extract(plm, sequences, tmp_path / "o", tmp_path / "c", Settings(**settings), sequences_sha256=SHA256)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_types(plm, sequences, tmp_path, dtype):
    settings = Settings(**{**vars(SETTINGS), "dtype": dtype})
    (statistics,) = extract(plm, sequences, tmp_path / "o", tmp_path / "c", settings, sequences_sha256=SHA256)
    error = statistics["train"].relative_rounding_error
    assert error == 0 if dtype == "float32" else 1e-5 < error < 5e-4
    torch_dtype = getattr(torch, dtype)
    rows, expected = stored_rows(tmp_path / "o", "train"), expected_rows(plm, sequences, "train", torch_dtype)
    assert torch.cdist(rows.double(), expected.double()).min(1).values.max() < 2e-3


def test_check_store(undisturbed, tmp_path, plm, sequences):
    table = check_store(undisturbed[0], read_metadata(undisturbed[0]).num_tokens)
    assert list(table.columns) == ["split", "chunk", "num_rows", "num_nonfinite", "mean_norm"]
    for split in ("train", "valid"):
        rows = stored_rows(undisturbed[0], split)
        part = table[table["split"] == split]
        assert part["num_rows"].sum() == len(rows)
        mean = (part["mean_norm"] * part["num_rows"]).sum() / len(rows)
        assert mean == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)
    with pytest.raises(DataError, match=r"split 'train' holds \d+ rows for 7 residues"):
        check_store(undisturbed[0], {"train": 7, "valid": 1})


def test_check_store_finds_values_that_are_not_finite(plm, sequences, tmp_path):
    extract(plm, sequences, tmp_path / "out", tmp_path / "c", SETTINGS, sequences_sha256=SHA256)
    chunk = tmp_path / "out" / "valid" / "chunk-0-0.bin"
    data = bytearray(chunk.read_bytes())
    data[-2:] = b"\xc0\x7f"  # a NaN in bfloat16
    chunk.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"1 rows of chunk 'chunk-0-0.bin' are not finite") as caught:
        check_store(tmp_path / "out")
    assert caught.value.where == str(chunk)
