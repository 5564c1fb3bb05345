"""Shuffled batches as a pure function of the step, from rows that come in groups.

An epoch is a sequence of groups; a group is loaded into a pool and its rows are permuted. All permutations are drawn
from (seed, epoch, group), so that a batch depends on nothing but its step: resuming at any step is exact and there is
no generator state to save. The stream of epochs is cut into batches without dropping rows: a batch may hold the end of
one epoch and the start of the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plmsae.activations.pools import Key, Pool, Pools
from plmsae.errors import PlmsaeError


class ShuffledRows(ABC):
    """Batches of rows; several threads may ask for them at the same time.

    Args:
        batch_size: Rows of a batch.
        seed: Seed of the order.
        buffer: (rows, d_model) of the largest group.
        dtype: Type of the rows in memory.
        ahead: Load the next group while this one is used, on a thread; takes the memory twice.
        rank: Which of `world_size` processes this is.
        world_size: Processes that share the rows: together their batches of a step are the batch that one process
            with world_size * batch_size rows would get.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        buffer: tuple[int, int],
        dtype: torch.dtype,
        *,
        ahead: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.d_model = buffer[1]
        self._pools = Pools([Pool(torch.empty(buffer, dtype=dtype)) for _ in range(1 + ahead)], self._load)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="pool") if ahead else None
        self._current: Key | None = None
        self._starts_of = lru_cache(maxsize=2)(self._starts)

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows of an epoch."""

    @abstractmethod
    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """The row of the epoch at which each of its groups starts."""

    @abstractmethod
    def _fill(self, key: Key, rows: Tensor) -> int:
        """Write the rows of a group into [at least as many, d_model]; returns how many they are."""

    def state(self) -> dict[str, int]:
        """What decides, with the step, which rows a batch holds: a training may go on only with the same."""
        return {
            "world_size": self.world_size,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "rows": self.num_rows,
            "pools_of_an_epoch": len(self._starts_of(0)),
        }

    def batch(self, step: int, out: Tensor | None = None) -> Tensor:
        """The batch of a step.

        Args:
            step: 0-based.
            out: fp32 [batch_size, d_model] to write into; by default a new tensor.

        Returns:
            fp32 [batch_size, d_model]: with one process, rows step * batch_size and on of the endless stream of
            epochs.
        """
        if out is None:
            out = torch.empty(self.batch_size, self.d_model)
        position, filled = (step * self.world_size + self.rank) * self.batch_size, 0
        while filled < self.batch_size:
            epoch, row = divmod(position + filled, self.num_rows)
            starts = self._starts_of(epoch)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            first = row - int(starts[group])
            with self._pools.use((epoch, group)) as pool:
                take = min(self.batch_size - filled, len(pool.order) - first)
                _gather(pool.rows, pool.order[first : first + take], out[filled : filled + take])
            if self._ahead is not None and self._current != (epoch, group):
                self._current = (epoch, group)
                self._ahead.submit(self._load_ahead, self._after((epoch, group)))
            filled += take
        return out

    def _load(self, key: Key, pool: Pool) -> None:
        """Bring a group into a pool."""
        num_rows = self._fill(key, pool.rows)
        epoch, group = key
        pool.order = np.random.default_rng([self.seed, epoch, group + 1]).permutation(num_rows)

    def _load_ahead(self, key: Key) -> None:
        with suppress(PlmsaeError), self._pools.use(key):  # the batch that needs it meets the failure, or not any more
            pass

    def _after(self, key: Key) -> Key:
        """The group after this one."""
        epoch, group = key
        return (epoch, group + 1) if group + 1 < len(self._starts_of(epoch)) else (epoch + 1, 0)


def _gather(pool: Tensor, rows: npt.NDArray[np.int64], out: Tensor) -> None:
    """out[i] = pool[rows[i]] as fp32.

    In numpy, on the calling thread: at 12 M rows/s on one core there is nothing to gain from PyTorch's thread pool,
    and it stalls when another process has the other core. bfloat16 is the upper half of a fp32.
    """
    target = out.numpy()
    if pool.dtype == torch.bfloat16:
        bits = target.view(np.uint32)
        bits[...] = np.take(pool.view(torch.uint16).numpy(), rows, axis=0, mode="clip")
        np.left_shift(bits, 16, out=bits)
    else:
        target[...] = np.take(pool.numpy(), rows, axis=0, mode="clip")
