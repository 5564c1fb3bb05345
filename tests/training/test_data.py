import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.training.data import Scaled, StepStream, check_state, rows
from tests.training.streams import Rows


def test_rows_gives_each_row_once_and_cuts_the_last_batch() -> None:
    x = torch.arange(20.0).view(10, 2)
    assert torch.equal(torch.cat(list(rows(Rows(x, 4), 7))), x[:7])
    assert torch.equal(torch.cat(list(rows(Rows(x, 4), 1000))), x)


def test_stream_starts_at_any_step() -> None:
    source = Rows(torch.arange(12.0).view(12, 1), 5)
    batches = list(StepStream(source, 2, 5))
    assert len(batches) == 3
    assert torch.equal(batches[1], source.batch(3))


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_workers_keep_the_order_and_stay_a_few_batches_ahead(num_workers: int) -> None:
    class Counted(Rows):
        asked = 0

        def batch(self, step: int) -> torch.Tensor:
            self.asked = max(self.asked, step)
            return super().batch(step)

    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    alone, source = Rows(x, 7), Counted(x, 7)
    for step, batch in enumerate(StepStream(source, 3, 120, num_workers), start=3):
        assert torch.equal(batch, alone.batch(step))
        assert source.asked <= step + 2 * num_workers
    assert step == 119


def test_a_failure_of_a_worker_comes_at_its_step() -> None:
    x = torch.ones(70, 2)
    x[35] = float("inf")
    stream = iter(StepStream(Scaled(Rows(x, 7), 1.0), 0, 10, 2))
    for _ in range(5):
        next(stream)
    with pytest.raises(DataError, match="1 of 7 activation rows"):
        next(stream)


def test_a_change_of_what_the_batches_depend_on_is_refused_by_name() -> None:
    state = {"world_size": 2, "batch_size": 64}
    check_state(state, dict(state), "there")
    with pytest.raises(UserError, match=r"other batches than it began with: world size was 2 and is 1\n") as error:
        check_state(state, {**state, "world_size": 1}, "there")
    assert error.value.where == "there"
    assert "same number of processes" in (error.value.fix or "")
    with pytest.raises(UserError, match="seed was not known and is 3"):
        check_state(state, {**state, "seed": 3}, "there")


def test_scaled_divides_and_names_the_step_of_a_bad_row() -> None:
    x = torch.ones(10, 3)
    assert torch.equal(Scaled(Rows(x, 4), 2.0).batch(0), torch.full((4, 3), 0.5))
    x[6, 1] = float("nan")
    with pytest.raises(DataError, match="1 of 4 activation rows") as error:
        Scaled(Rows(x, 4), 2.0).batch(1)
    assert "step 1" in (error.value.where or "")
    x[6, 1], x[7, 0] = float("inf"), -float("inf")
    with pytest.raises(DataError, match="2 of 4 activation rows"):
        Scaled(Rows(x, 4), 2.0).batch(1)


def test_rows_whose_sum_overflows_are_finite() -> None:
    x = torch.full((4, 3), 3e38)
    assert torch.equal(Scaled(Rows(x, 4), 3e38).batch(0), torch.ones(4, 3))
