"""Selection over several processes is that of all their rows in one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plmsae.saes import SaeConfig, build
from plmsae.saes.group import Group
from plmsae.saes.selection import keep_largest, largest_of_blocks
from plmsae.saes.shared_selection import first_largest_of_all
from tests.saes.threads import on_each

NORMALISER = {"kind": "rms", "scale": 1.0, "folded": False}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_first_largest_of_all_are_those_of_a_stable_sort(data: st.DataObject, dtype: torch.dtype) -> None:
    tiny = float(torch.finfo(dtype).tiny)
    value = st.sampled_from([tiny, 0.5, 1.0, 1.0 + 2**-20, 3.0, 1e30]) | st.floats(2.0**-100, 2.0**100, width=32)
    parts = data.draw(st.lists(st.lists(value, max_size=12), min_size=1, max_size=4))
    everything = [value for part in parts for value in part]
    if len(everything) < 2:
        return
    count = data.draw(st.integers(1, len(everything) - 1))
    tensors = [torch.tensor(part, dtype=dtype) for part in parts]
    found = on_each(len(parts), lambda group: first_largest_of_all(tensors[group.rank], count, group))
    flat = torch.cat(tensors).tolist()
    wanted = sorted(sorted(range(len(flat)), key=lambda place: -flat[place])[:count])
    starts = [sum(map(len, parts[:rank])) for rank in range(len(parts))]
    assert [start + place for start, places in zip(starts, found) for place in places.tolist()] == wanted


def rows(seed: int, ties: bool) -> Tensor:
    x = torch.randn(96, 512, generator=torch.Generator().manual_seed(seed))
    return (x * 4).round() / 4 if ties else x


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [1, 700, 9000, 96 * 512])
def test_blocks_of_several_processes_give_what_one_gives(count: int, size: int, ties: bool) -> None:
    x = rows(count, ties)
    x[:32] += 0.5  # so that one process has more of the largest than its share
    places, values = largest_of_blocks(lambda: torch.split(x, 7), len(x), count)
    parts = x.chunk(size)

    def act(group: Group) -> tuple[Tensor, Tensor]:
        own = parts[group.rank]
        return largest_of_blocks(lambda: torch.split(own, 7), len(own), count, group)

    found = on_each(size, act)
    shifted = [place + rank * parts[0].numel() for rank, (place, _) in enumerate(found)]
    assert torch.equal(torch.cat(shifted), places)
    assert torch.equal(torch.cat([value for _, value in found]), values)
    kept = on_each(size, lambda group: keep_largest(parts[group.rank].relu(), count, group))
    assert torch.equal(torch.cat(kept), keep_largest(x.relu(), count))


@pytest.mark.parametrize("shares", [(50, 50), (100, 0), (7, 90, 3)])
def test_the_threshold_is_that_of_all_rows(shares: tuple[int, ...]) -> None:
    x = torch.randn(100, 16, generator=torch.Generator().manual_seed(3))
    config = SaeConfig("batch_topk", 16, 64, 5, "plm", "revision", 1, "residual", NORMALISER, {})
    alone = build(config, seed=1)
    alone.calibrate(x)

    def act(group: Group) -> Tensor:
        sae = build(config, seed=1)
        sae.group = group
        sae.calibrate(x.split(shares)[group.rank])
        return sae.get_buffer("threshold")

    assert {float(found) for found in on_each(len(shares), act)} == {float(alone.get_buffer("threshold"))}
