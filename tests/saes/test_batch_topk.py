from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from plmsae.errors import DataError, UserError
from plmsae.saes import build, load_folder, save
from plmsae.saes.batch_topk import BatchTopK
from plmsae.saes.selection import keep_largest, sparse_rows
from tests.saes.by_hand import ROWS, by_hand, fill
from tests.saes.conftest import config_of, generic_sae


def test_selection_over_the_batch_and_by_threshold_by_hand() -> None:
    sae = by_hand(BatchTopK, "batch_topk", k=1)
    terms = sae.loss(ROWS)
    # The four largest of all are 4.5, 4, 3 and 3: one latent of row 0 and all of row 2. Squared errors: 0, 2^2,
    # 4.5^2 (row 2 is reconstructed twice over: by e1 and e2, and again by the diagonal), 1 + 1.
    assert terms.counts.tolist() == [2, 1, 1]
    assert float(terms.reconstruction) == pytest.approx((0 + 4 + 20.25 + 2) / 4)
    sae.calibrate(ROWS)
    assert float(sae.threshold) == 2.5  # between 3, the smallest that is kept, and 2
    wanted = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [3.0, 4.0, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(sae.encode(ROWS), wanted)
    # A batch of its own row has one latent in training, but the threshold knows no batch.
    assert sae.loss(ROWS[1:2]).counts.tolist() == [0, 1, 0]
    assert not sae.encode(ROWS[1:2]).any()


@given(seed=st.integers(0, 2**16), k=st.integers(1, 10), num_rows=st.integers(1, 300))
@example(seed=20051, k=7, num_rows=217)  # two equal values where the threshold is
@settings(deadline=None, max_examples=25)
def test_after_calibration_the_mean_l0_is_k(seed: int, k: int, num_rows: int) -> None:
    sae = generic_sae("batch_topk", seed=seed, k=k)
    x = torch.randn(num_rows, 12, generator=torch.Generator().manual_seed(seed))
    sae.calibrate(x)
    active = int((sae.encode(x) > 0).sum())
    positive = int((sae.loss(x).counts).sum())
    tied = int((sae._rectified(x) == sae.threshold).sum())  # type: ignore[operator]  # all of them pass or none
    assert active <= positive <= active + (tied if float(sae.threshold) else 0)
    assert positive <= k * num_rows  # fewer only where fewer are positive


def test_calibration_in_blocks_equals_one_quantile() -> None:
    sae = generic_sae("batch_topk", dictionary_size=4096, k=7)
    assert isinstance(sae, BatchTopK)
    x = torch.randn(1300, 12, generator=torch.Generator().manual_seed(3))  # three blocks
    sae.calibrate(x)
    values = ((x - sae.b_dec) @ sae.W_enc.t() + sae.b_enc).relu().flatten().sort(descending=True).values
    kept, left_out = float(values[7 * 1300 - 1]), float(values[7 * 1300])
    assert left_out - 1e-6 <= float(sae.threshold) <= kept + 1e-6
    assert float((sae.encode(x) > 0).sum(1).double().mean()) == pytest.approx(7, abs=1e-3)


def test_all_positive_latents_pass_where_there_are_too_few() -> None:
    sae = by_hand(BatchTopK, "batch_topk", k=3)
    sae.calibrate(ROWS)
    assert float(sae.threshold) == 0.0
    torch.testing.assert_close(sae.encode(ROWS[:1]), torch.tensor([[3.0, 0.0, 1.3]]))


def test_ties_at_the_threshold_are_left_out_together() -> None:
    sae = by_hand(BatchTopK, "batch_topk", k=1)
    sae.calibrate(ROWS[[0, 0, 2]])  # values 4.5, 4, 3 and then 3, 3, 1.3, ...
    assert float(sae.threshold) == 3.0
    assert int((sae.encode(ROWS[[0, 0, 2]]) > 0).sum()) == 2


def test_without_a_threshold_nothing_is_encoded_or_saved(tmp_path: Path) -> None:
    sae = build(config_of("batch_topk"))
    with pytest.raises(UserError, match="no threshold yet") as user_error:
        sae.encode(torch.zeros(1, 12))
    assert "calibrate" in (user_error.value.fix or "")
    with pytest.raises(UserError, match="on 0 rows"):
        sae.calibrate(torch.zeros(0, 12))
    with pytest.raises(DataError, match="1 of 2 activation rows"):
        sae.calibrate(torch.tensor([[float("nan")] * 12, [0.0] * 12]))
    with pytest.raises(DataError, match="never calibrated"):
        save(sae, tmp_path / "sae")
    assert not list((tmp_path / "sae").iterdir())


def test_a_file_with_a_negative_threshold_is_refused(tmp_path: Path) -> None:
    save(generic_sae("batch_topk"), tmp_path)
    tensors = load_file(tmp_path / "sae.safetensors")
    save_file({**tensors, "threshold": torch.tensor(-0.5)}, tmp_path / "sae.safetensors")
    with pytest.raises(DataError, match=r"threshold is -0\.5") as error:
        load_folder(tmp_path)
    assert "sae.safetensors" in (error.value.where or "")


def test_aux_k_uses_the_latents_that_the_batch_left_out() -> None:
    sae = by_hand(BatchTopK, "batch_topk", k=1)
    terms = sae.terms(ROWS, torch.tensor([False, True, False]))
    # Residuals e: 0, (0, 2), -(2.7, 3.6), (-1, -1); the dead latent has z = 0, 2, 4, 0 along e2, without the bias.
    e = torch.tensor([[0.0, 0.0], [0.0, 2.0], [-2.7, -3.6], [-1.0, -1.0]])
    error = 0.0 + 0.0 + (2.7**2 + 7.6**2) + 2.0
    assert float(terms.values["aux"]) == pytest.approx(error / float((e - e.mean(0)).square().sum()), rel=1e-5)


def test_keep_largest_by_hand_and_more_than_there_are() -> None:
    values = torch.tensor([[1.0, 5.0], [4.0, 2.0]])
    assert torch.equal(keep_largest(values, 2), torch.tensor([[0.0, 5.0], [4.0, 0.0]]))
    assert torch.equal(keep_largest(values, 99), values)


def test_rows_of_unequal_length_are_padded_without_repeats() -> None:
    z = torch.zeros(5, 6)
    fill(z[0], [0.0, 0.0, 0.0, 0.0, 2.0, 1.0])
    fill(z[3], [3.0, 0.0, 4.0, 5.0, 0.0, 6.0])
    for block_rows in (1, 2, 5):
        indices, values = sparse_rows(lambda rows: rows, z, block_rows)
        assert indices.shape == values.shape == (5, 4)
        assert all(len(set(row)) == 4 for row in indices.tolist())
        assert torch.equal(torch.zeros_like(z).scatter(1, indices, values), z)
