"""int8 rows with a scale each: what rounding costs, and that every way of reading a store decodes alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plmsae.activations.blocks import BlockStore
from plmsae.activations.check import check_store
from plmsae.activations.extract import extract
from plmsae.activations.reader import ActivationReader
from plmsae.activations.rows import decode, encode
from plmsae.artifacts.s3 import S3Uri
from plmsae.errors import DataError
from tests.activations.test_extract import SETTINGS, SHA256, contents

INT8 = replace(SETTINGS, dtype="int8")


@given(st.integers(0, 10_000), st.sampled_from([1e-20, 1e-3, 1.0, 1e4, 1e30]))
def test_no_value_moves_by_more_than_half_a_step_of_its_row(seed, size):
    rows = size * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    stored = encode(rows, torch.int8)
    assert (stored.dtype, stored.shape) == (torch.int8, (5, 11))
    step = rows.abs().amax(dim=1, keepdim=True).double() / 127
    assert bool(((decode(stored).double() - rows).abs() <= step * 0.50001).all())
    assert torch.equal(encode(decode(stored), torch.int8)[:, :7], stored[:, :7])


def test_by_hand():
    stored = encode(torch.tensor([[254.0, -127.0, 1.1, 0.0], [0.0, 0.0, 0.0, 0.0]]), torch.int8)
    assert stored[0, :4].tolist() == [127, -64, 1, 0]  # -63.5 rounds to even
    assert stored[0, 4:].numpy().tobytes() == np.float32(2).tobytes()
    assert decode(stored).tolist() == [[254.0, -128.0, 2.0, 0.0], [0.0] * 4]


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_so(bad):
    rows = torch.tensor([[1.0, bad, 3.0], [1.0, 2.0, 3.0]])
    assert torch.isfinite(decode(encode(rows, torch.int8))).all(dim=1).tolist() == [False, True]


@pytest.fixture(scope="module")
def int8(plm, sequences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    (statistics,) = extract(plm, sequences, folder / "out", folder / "ck", INT8, sequences_sha256=SHA256)
    return folder / "out", statistics


def test_the_store_holds_the_rounded_rows_of_fp32(plm, sequences, int8, tmp_path):
    exact = replace(SETTINGS, dtype="float32")
    extract(plm, sequences, tmp_path / "out", tmp_path / "ck", exact, sequences_sha256=SHA256)
    ours, theirs = (torch.cat(list(BlockStore(folder, "train").rows(999))) for folder in (int8[0], tmp_path / "out"))
    assert torch.equal(ours, decode(encode(theirs, torch.int8)))
    error = float((ours - theirs).norm() / ours.norm())
    assert int8[1]["train"].relative_rounding_error == pytest.approx(error, rel=1e-5)
    assert 1e-3 < error < 1e-2
    assert int8[1]["train"].scale == pytest.approx(float(ours.double().square().sum(1).mean().sqrt()), rel=1e-9)
    sizes = [
        sum(len(data) for name, data in contents(folder).items() if "train" in name and name.endswith(".bin"))
        for folder in (int8[0], tmp_path / "out")
    ]
    assert sizes[0] < sizes[1] * (12 + 2) / 32  # 8 values and a scale against 8 of 4 bytes; blocks have headers


def test_batches_are_decoded_rows(int8):
    rows = torch.cat(list(BlockStore(int8[0], "train").rows(10_000)))
    batch = ActivationReader(int8[0], "train", len(rows), seed=0).batch(0)
    assert sorted(map(tuple, batch.tolist())) == sorted(map(tuple, rows.tolist()))


def test_the_check_decodes(int8):
    table = check_store(int8[0])
    rows = torch.cat(list(BlockStore(int8[0], "valid").rows(10_000)))
    valid = table[table["split"] == "valid"]
    mean = (valid["mean_norm"] * valid["num_rows"]).sum() / len(rows)
    assert mean == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-5)


def test_in_a_bucket(plm, sequences, int8, s3, tmp_path):
    place = S3Uri.parse(f"s3://{s3.bucket()}/stores")
    extract(plm, sequences, tmp_path / "out", tmp_path / "ck", INT8, sequences_sha256=SHA256, store=place)
    readers = [ActivationReader(folder, "train", 300, seed=1, pool_rows=400) for folder in (tmp_path / "out", int8[0])]
    for step in range(8):
        assert torch.equal(*(reader.batch(step) for reader in readers))


def test_values_that_are_not_finite_are_refused(plm, sequences, tmp_path):
    class Broken:
        def __getattr__(self, name):
            return getattr(plm, name)

        def hidden_at(self, tokens, places):
            return [hidden.index_fill(0, torch.tensor([0]), torch.nan) for hidden in plm.hidden_at(tokens, places)]

    with pytest.raises(DataError, match="not finite"):
        extract(Broken(), sequences, tmp_path / "o", tmp_path / "c", INT8, sequences_sha256=SHA256)
