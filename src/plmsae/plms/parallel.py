"""Work on several batches at once, one core each.

Splitting every operator over the cores makes them wait for each other some hundred times per batch, and a busy
neighbour on one core stalls all. Giving each core whole batches needs no waiting, and the result does not depend on
the number of threads: each batch is computed by one core in the same order of operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """`map(function, items)` on `threads` threads, each with PyTorch's own parallelism switched off.

    Args:
        function: Must not change shared state.
        items: Taken a little ahead of the results, so that memory stays bounded.
        threads: Number of threads.

    Yields:
        The results in the order of the items. An exception of `function` is raised at its place.
    """
    executor = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
