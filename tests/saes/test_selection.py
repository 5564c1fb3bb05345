import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plmsae.saes.selection import group_size, keep_largest, largest_of_blocks, top_k_indices


@given(
    num_latents=st.sampled_from([1, 7, 40, 256, 512, 1024, 1536, 2048, 3072]),
    k=st.integers(1, 64),
    rounded=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_the_k_largest_are_chosen_also_among_ties(num_latents: int, k: int, rounded: bool, seed: int) -> None:
    k = min(k, num_latents)
    pre = torch.randn(9, num_latents, generator=torch.Generator().manual_seed(seed))
    if rounded:
        pre = (3 * pre).round()  # a handful of distinct values: nearly everything is tied
    indices = top_k_indices(pre, k)
    assert indices.shape == (9, k)
    assert all(len(set(row)) == k for row in indices.tolist())
    assert torch.equal(pre.gather(1, indices).sort(1).values, pre.sort(1).values[:, -k:])


@pytest.mark.parametrize(
    ("num_latents", "k", "size"), [(3072, 32, 8), (10240, 32, 16), (40, 5, 1), (3071, 32, 1), (512, 500, 1)]
)
def test_two_stages_where_they_pay(num_latents: int, k: int, size: int) -> None:
    assert group_size(num_latents, k) == size


@given(
    shape=st.sampled_from([(1, 1), (3, 40), (50, 61), (100, 122), (64, 512)]),
    share=st.floats(0.0, 1.0),
    rounded=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=60)
def test_the_largest_of_a_batch_are_kept_where_they_stand(
    shape: tuple[int, int], share: float, rounded: bool, seed: int
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()
    values[:, ::61] *= 9.0  # columns that a careless sample would see too often, or never
    if rounded:
        values = values.round()
    count = max(1, int(share * values.numel()))
    kept = keep_largest(values, count)
    wanted = values.flatten().sort(descending=True).values[:count]
    assert torch.equal(kept.flatten().sort(descending=True).values[:count], wanted)
    assert torch.equal(kept[kept > 0], values[kept > 0])
    assert int((kept > 0).sum()) <= count
    # Among equal values, those that come first.
    order = sorted(range(values.numel()), key=lambda place: (-float(values.flatten()[place]), place))
    first = set(order[:count])
    assert all((place in first) or not kept.flatten()[place] for place in range(values.numel()))


@given(
    shape=st.sampled_from([(1, 1), (3, 40), (50, 61), (100, 122), (64, 512), (70, 800)]),
    block_rows=st.integers(1, 70),
    share=st.floats(0.0, 0.6),
    rounded=st.booleans(),
    first_block=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=80)
def test_the_largest_of_a_batch_that_comes_in_blocks(
    shape: tuple[int, int], block_rows: int, share: float, rounded: bool, first_block: float, seed: int
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values[:block_rows] *= first_block
    if rounded:
        values = values.round()
    count = max(1, int(share * values.numel()))
    places, chosen = largest_of_blocks(lambda: torch.split(values, block_rows), len(values), count)
    flat = values.flatten().tolist()
    order = sorted((place for place in range(len(flat)) if flat[place] > 0), key=lambda place: (-flat[place], place))
    assert places.tolist() == sorted(order[:count])
    assert torch.equal(chosen, values.flatten()[places])


def test_a_floor_from_a_block_like_the_others_needs_one_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    values, passes = torch.randn(400, 512, generator=generator), []
    for scale, wanted in ((1.0, 1), (10.0, 2)):  # of the first block
        values[:100] *= scale
        passes.clear()
        places, _ = largest_of_blocks(lambda: passes.append(1) or torch.split(values, 100), 400, 400 * 8)
        assert (len(passes), len(places)) == (wanted, 3200)
