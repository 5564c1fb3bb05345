from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from plmsae.plms.batching import length_sorted_batches


def test_by_hand():
    # With two special tokens each: 12, 7, 7, 5, 3; budget 14.
    batches = length_sorted_batches(np.array([5, 10, 1, 5, 3]), 14)
    assert [batch.tolist() for batch in batches] == [[1], [0, 3], [4, 2]]


def test_a_sequence_beyond_the_budget_is_alone():
    assert [batch.tolist() for batch in length_sorted_batches([3, 50, 4], 12)] == [[1], [2, 0]]


def test_nothing():
    assert length_sorted_batches(np.array([], dtype=int), 10) == []


@given(st.lists(st.integers(1, 400), max_size=60), st.integers(1, 900))
def test_every_index_once_within_the_budget_and_no_batch_split_too_early(lengths, budget):
    batches = length_sorted_batches(lengths, budget)
    assert sorted(np.concatenate([*batches, []]).astype(int).tolist()) == list(range(len(lengths)))
    tokens = [[lengths[i] + 2 for i in batch] for batch in batches]
    flat = [count for batch in tokens for count in batch]
    assert flat == sorted(flat, reverse=True)
    for batch, following in zip(tokens, [*tokens[1:], None], strict=False):
        assert len(batch) == 1 or sum(batch) <= budget
        assert following is None or sum(batch) + following[0] > budget
