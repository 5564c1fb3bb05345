"""Buffers that several threads share: loaded once, never changed under a user, free again after a failure."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from plmsae.activations.pools import Pool, Pools
from plmsae.errors import DataError


def make(num_pools, load):
    return Pools([Pool(torch.zeros(4, 2)) for _ in range(num_pools)], load)


def test_a_group_is_loaded_once_while_it_stays_and_the_oldest_goes_first():
    loaded = []
    pools = make(2, lambda key, pool: loaded.append(key))
    for group in (0, 1, 0, 2, 0, 1):
        with pools.use((0, group)):
            pass
    assert loaded == [(0, 0), (0, 1), (0, 2), (0, 1)]  # 2 replaced 1, which replaced 2


@pytest.mark.parametrize("num_pools", [1, 2, 3])
def test_what_a_user_sees_is_its_group_until_it_is_done(num_pools):
    loads, lock = [], threading.Lock()

    def load(key, pool):
        with lock:
            loads.append(key)
        for row in pool.rows:  # slowly: a reader that did not wait would see two groups at once
            row.fill_(key[1])

    pools = make(num_pools, load)

    def visit(seed):
        generator = random.Random(seed)
        for _ in range(200):
            group = generator.randrange(5)
            with pools.use((0, group)) as pool:
                for _ in range(3):
                    assert pool.rows.unique().tolist() == [group]

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(visit, range(4)))
    assert len(loads) < 800  # some were still there


def test_a_load_that_failed_is_tried_again():
    answers = [DataError("gone"), None]

    def load(key, pool):
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        pool.rows.fill_(1)

    pools = make(1, load)
    with pytest.raises(DataError, match="gone"), pools.use((0, 0)):
        pass
    with pools.use((0, 0)) as pool:
        assert bool((pool.rows == 1).all())
    assert not answers
