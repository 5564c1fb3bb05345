import pytest
import torch

from plmsae.errors import DataError
from plmsae.training.data import Scaled, StepStream, rows
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


def test_scaled_divides_and_names_the_step_of_a_bad_row() -> None:
    x = torch.ones(10, 3)
    assert torch.equal(Scaled(Rows(x, 4), 2.0).batch(0), torch.full((4, 3), 0.5))
    x[6, 1] = float("nan")
    with pytest.raises(DataError, match="1 of 4 activation rows") as error:
        Scaled(Rows(x, 4), 2.0).batch(1)
    assert "step 1" in (error.value.where or "")
