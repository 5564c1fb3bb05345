"""Rows in memory: a fixed number of buffers, each filled by one thread and then read by any number of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from torch import Tensor

Key = tuple[int, int]  # epoch, group of blocks


class Pool:
    """A buffer, and what is in it.

    Attributes:
        rows: [at least as many as the group has, d_model] of the stored type; the same memory for one group after the
            other, for touching fresh memory costs more than reading the rows.
        order: int64 [rows of the group], the order in which they are delivered.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._key: Key | None = None
        self._ready = False
        self._num_users = 0


class Pools:
    """Some pools; a group that is not in one of them replaces the one that was used least recently.

    Args:
        pools: The buffers; memory is bounded by them.
        load: Fills a buffer with a group; called by one thread at a time for each buffer.
    """

    def __init__(self, pools: list[Pool], load: Callable[[Key, Pool], None]) -> None:
        self._pools = pools  # the least recently used first
        self._load = load
        self._changed = threading.Condition()

    @contextmanager
    def use(self, key: Key) -> Iterator[Pool]:
        """The pool with a group, loaded; it stays as it is until the end of the block.

        A thread uses one pool at a time, so that it waits for others that do and never for itself.
        """
        pool = self._take(key)
        try:
            if not pool._ready:
                self._load(key, pool)
                pool._ready = True
            yield pool
        finally:
            with self._changed:
                pool._num_users -= 1
                if not pool._ready:
                    pool._key = None
                self._changed.notify_all()

    def _take(self, key: Key) -> Pool:
        """The pool of a group, with this thread among its users; one that is not ready is this thread's to load."""
        with self._changed:
            while True:
                pool = next((pool for pool in self._pools if pool._key == key), None)
                if pool is not None and pool._ready:
                    break
                if pool is None:
                    pool = next((pool for pool in self._pools if not pool._num_users), None)
                    if pool is not None:
                        pool._key, pool._ready = key, False
                        break
                self._changed.wait()
            pool._num_users += 1
            self._pools.remove(pool)
            self._pools.append(pool)
            return pool
