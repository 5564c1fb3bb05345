"""Batches straight from the model: the rows of a store, in another order, and an SAE that is as good."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plmsae.activations.extract import extract
from plmsae.activations.live import LiveReader
from plmsae.activations.metadata import read_metadata
from plmsae.activations.plan import Settings
from plmsae.activations.reader import ActivationReader
from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.saes import SaeConfig, save
from plmsae.training.data import BatchSource, Scaled
from plmsae.training.loop import train
from tests.activations.conftest import D_MODEL, write_model
from tests.training.streams import small_settings

BATCH = 64


@pytest.fixture(scope="module")
def store(plm, sequences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    settings = Settings(layer=1, block_rows=64, max_tokens_per_batch=256, shuffle_pool_rows=500, seed=3)
    extract(plm, sequences, folder / "store", folder / "checkpoints", settings, sequences_sha256="0" * 64)
    return folder / "store"


def live(plm: ProteinLM, sequences, store, pool_rows: int = 500, **more) -> LiveReader:
    return LiveReader(plm, sequences, "train", read_metadata(store), BATCH, 3, pool_rows, **more)


def epoch(reader, number: int) -> torch.Tensor:
    first, last = number * reader.num_rows, (number + 1) * reader.num_rows
    steps = range(first // BATCH, -(-last // BATCH))
    return torch.cat([reader.batch(step) for step in steps])[first - steps[0] * BATCH :][: reader.num_rows]


def in_one_order(x: torch.Tensor) -> np.ndarray:
    return x.numpy()[np.lexsort(x.numpy().T)]


@pytest.mark.parametrize("pool_rows", [200, 500, 10**6])
def test_an_epoch_is_the_rows_of_the_store_in_an_order_of_its_own(plm, sequences, store, pool_rows) -> None:
    reader, stored = live(plm, sequences, store, pool_rows), ActivationReader(store, "train", BATCH, 3)
    assert reader.num_rows == stored.num_rows
    first, second = epoch(reader, 0), epoch(reader, 1)
    # bf16 of sums whose last place depends on the batch: a rounding may fall the other way
    np.testing.assert_allclose(in_one_order(first)[:, -1], in_one_order(epoch(stored, 0))[:, -1], rtol=0.01)
    np.testing.assert_allclose(first.sum(0), second.sum(0), rtol=1e-3, atol=0.05)
    assert not torch.equal(first, second)
    assert not torch.equal(first, epoch(live(plm, sequences, store, pool_rows), 0).sort(0).values)


def test_any_step_any_threads_and_ahead_give_the_same_batches(plm, sequences, store) -> None:
    straight = live(plm, sequences, store)
    steps = 2 * straight.num_rows // BATCH
    batches = [straight.batch(step) for step in range(steps)]
    jumping = live(plm, sequences, store, threads=2, ahead=True)
    for step in (steps - 1, 3, 40, 0, 41):
        assert torch.equal(jumping.batch(step), batches[step])


def test_rows_of_a_batch_come_from_many_proteins_and_memory_is_the_pool(plm, sequences, store) -> None:
    reader = live(plm, sequences, store)
    longest = int(sequences["sequence"].str.len().max())
    for step in range(reader.num_rows // BATCH):
        reader.batch(step)
    assert sum(len(pool.rows) for pool in reader._pools._pools) <= 500 + longest
    assert len(reader._starts_of(0)) == -(-reader.num_rows // 500)


def run(source: BatchSource, valid: BatchSource, checkpoints, num_steps: int = 400):
    torch.set_num_threads(1)
    normaliser = {"kind": "rms", "scale": 1.0, "folded": False}
    config = SaeConfig("topk", D_MODEL, 32, 4, "plm", "revision", 1, "residual", normaliser)
    settings = small_settings(num_steps=num_steps, batch_size=BATCH, num_valid_rows=10**6, checkpoint_every=150)
    return train(config, "auto", source, valid, settings, checkpoints)


def test_it_reaches_the_loss_of_the_stored_rows_and_resumes_exactly(plm, sequences, store, tmp_path) -> None:
    scale = read_metadata(store).normaliser.scale
    valid = Scaled(ActivationReader(store, "valid", BATCH, 3), scale)
    stored = run(Scaled(ActivationReader(store, "train", BATCH, 3, 500), scale), valid, tmp_path / "stored")
    computed = run(Scaled(live(plm, sequences, store), scale), valid, tmp_path / "live")
    assert computed.curves[-1]["valid_fvu"] < 0.5 * computed.curves[0]["valid_fvu"]
    assert computed.curves[-1]["valid_fvu"] == pytest.approx(stored.curves[-1]["valid_fvu"], rel=0.05)

    class Stop(Scaled):
        def batch(self, step: int) -> torch.Tensor:
            if step > 200:
                raise KeyboardInterrupt
            return super().batch(step)

    with pytest.raises(KeyboardInterrupt):
        run(Stop(live(plm, sequences, store), scale), valid, tmp_path / "again")
    resumed = run(Scaled(live(plm, sequences, store), scale), valid, tmp_path / "again")
    for name, trained in (("a", computed), ("b", resumed)):
        save(trained.sae, tmp_path / name)
    assert (tmp_path / "a" / "sae.safetensors").read_bytes() == (tmp_path / "b" / "sae.safetensors").read_bytes()


def test_other_sequences_or_another_model_are_refused(plm, sequences, store, tmp_path) -> None:
    changed = sequences.assign(sequence=sequences["sequence"].str.replace("A", "G"))
    assert live(plm, changed, store).state() != live(plm, sequences, store).state()
    other = load_plm(str(write_model(tmp_path / "lm", scale=0.25)))
    with pytest.raises(UserError, match=r"the model is .* the store is of"):
        live(other, sequences, store)
    with pytest.raises(DataError, match="no sequences in split 'valid'"):
        LiveReader(plm, sequences[sequences["split"] == "train"], "valid", read_metadata(store), BATCH, 3)
    metadata = read_metadata(store).model_copy(update={"layer": 9})
    with pytest.raises(UserError, match="has no layer 9"):
        LiveReader(plm, sequences, "train", metadata, BATCH, 3)


def test_a_closed_reader_computes_nothing_more(plm, sequences, store) -> None:
    with live(plm, sequences, store, 200, ahead=True) as reader:
        reader.batch(0)
    with pytest.raises(UserError, match="closed"):
        reader.batch(10**4)
