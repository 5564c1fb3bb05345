"""Shuffled training batches as a pure function of the step.

Each epoch permutes the blocks, pools them group by group and permutes the rows of each pool. All permutations are
drawn from (seed, epoch, group), so that a batch depends on nothing but its step: resuming at any step is exact and
there is no generator state to save. The stream of epochs is cut into batches without dropping rows: a batch may hold
the end of one epoch and the start of the next.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plmsae.activations.blocks import BlockStore
from plmsae.activations.cache import BlockCache
from plmsae.activations.chunks import Block
from plmsae.activations.pools import Key, Pool, Pools
from plmsae.errors import DataError, PlmsaeError

DEFAULT_POOL_ROWS = 131_072


class ActivationReader:
    """Batches of one split of a store; several threads may ask for them at the same time.

    Args:
        folder: Store folder.
        split: `train` or `valid`.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        pool_rows: Rows that are mixed at once, rounded up to whole blocks; the memory that the reader holds is
            pool_rows * (d_model * bytes per value + 8).
        cache: Keeps blocks of a remote store on this disk, and lets the next pool come while this one is used.
        ahead: Load the next pool into memory while this one is used, on a thread; takes the memory twice.
        rank: Which of `world_size` processes this is.
        world_size: Processes that share the rows: together their batches of a step are the batch that one process
            with world_size * batch_size rows would get.

    Raises:
        UserError: The store has no such split, or no permission to read the bucket.
        DataError: The split is empty or a chunk is missing or corrupted.
        TryAgainError: The bucket cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        batch_size: int,
        seed: int,
        pool_rows: int = DEFAULT_POOL_ROWS,
        cache: BlockCache | None = None,
        *,
        ahead: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.store = BlockStore(folder, split, cache)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        if self.store.num_rows == 0:
            raise DataError(f"split '{split}' of the store is empty", where=str(folder), fix="extract more sequences")
        self._block_rows = np.array([block.num_rows for block in self.store.blocks], dtype=np.int64)
        self._group_blocks = max(1, -(-pool_rows // int(self._block_rows.max())))
        capacity = min(self.num_rows, self._group_blocks * int(self._block_rows.max()))
        dtype = self.store.metadata.torch_dtype
        pools = [Pool(torch.empty(capacity, self.d_model, dtype=dtype)) for _ in range(1 + ahead)]
        self._pools = Pools(pools, self._load)
        self._reading = threading.Lock()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="pool") if ahead else None
        self._current: Key | None = None
        self._epoch_plan = lru_cache(maxsize=2)(self._plan)

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self.store.num_rows

    @property
    def d_model(self) -> int:
        """Row width."""
        return self.store.d_model

    def state(self) -> dict[str, int]:
        """What decides, with the step, which rows a batch holds: a training may go on only with the same."""
        return {
            "world_size": self.world_size,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "blocks_of_a_pool": self._group_blocks,
            "rows": self.num_rows,
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
            _, starts = self._epoch_plan(epoch)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            first = row - int(starts[group])
            with self._pools.use((epoch, group)) as pool:
                take = min(self.batch_size - filled, len(pool.order) - first)
                _gather(pool.rows, pool.order[first : first + take], out[filled : filled + take])
            if self._ahead is not None and self._current != (epoch, group):
                self._current = (epoch, group)
                self._ahead.submit(self._load_ahead, self._after(epoch, group))
            filled += take
        return out

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Order of the blocks in an epoch, and the row at which each group of blocks starts."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._block_rows))
        ends = np.cumsum(self._block_rows[order])
        starts = np.concatenate([[0], ends[self._group_blocks - 1 : -1 : self._group_blocks]])
        return order, starts

    def _load(self, key: Key, pool: Pool) -> None:
        """Bring a group into a pool."""
        blocks = self._blocks_of(*key)
        num_rows = sum(block.num_rows for block in blocks)
        with self._reading:
            self.store.read(blocks, pool.rows[:num_rows])
            self.store.prefetch(self._blocks_of(*self._after(*key)))
        epoch, group = key
        pool.order = np.random.default_rng([self.seed, epoch, group + 1]).permutation(num_rows)

    def _load_ahead(self, key: Key) -> None:
        with suppress(PlmsaeError), self._pools.use(key):  # the batch that needs it meets the failure, or not any more
            pass

    def _after(self, epoch: int, group: int) -> Key:
        """The group after this one."""
        return (epoch, group + 1) if self._blocks_of(epoch, group + 1) else (epoch + 1, 0)

    def _blocks_of(self, epoch: int, group: int) -> list[Block]:
        """The blocks of a group, in the order of the epoch; none beyond the last group."""
        order, _ = self._epoch_plan(epoch)
        return [self.store.blocks[i] for i in order[group * self._group_blocks : (group + 1) * self._group_blocks]]


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
