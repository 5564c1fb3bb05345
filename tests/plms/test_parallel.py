from __future__ import annotations

import threading

import pytest
import torch

from plmsae.plms.parallel import ordered_map


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_keep_the_order_of_the_items(threads):
    late = threading.Event()  # with several threads the first item finishes after the second

    def work(item):
        if item == 0 and threads > 1:
            late.wait(5)
        if item == 1:
            late.set()
        return item * item

    assert list(ordered_map(work, range(20), threads)) == [i * i for i in range(20)]


def test_workers_use_one_core_each_and_leave_the_caller_alone():
    torch.set_num_threads(2)
    assert set(ordered_map(lambda _: torch.get_num_threads(), range(6), 2)) == {1}
    assert torch.get_num_threads() == 2


def test_an_exception_comes_at_its_place_and_stops_the_rest():
    started = []

    def work(item):
        started.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    results = ordered_map(work, range(1000), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(started) < 20


def test_items_are_taken_only_a_little_ahead():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    results = ordered_map(lambda item: item, items(), 2)
    next(results)
    assert len(taken) <= 6
    results.close()
