"""Shuffled training batches as a pure function of the step.

Each epoch permutes the blocks, pools them group by group and permutes the rows of each pool. All permutations are
drawn from (seed, epoch, group), so that a batch depends on nothing but its step: resuming at any step is exact and
there is no generator state to save. The stream of epochs is cut into batches without dropping rows: a batch may hold
the end of one epoch and the start of the next.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plmsae.activations.blocks import BlockStore
from plmsae.activations.cache import BlockCache
from plmsae.activations.chunks import Block
from plmsae.errors import DataError

DEFAULT_POOL_ROWS = 131_072


class ActivationReader:
    """Batches of one split of a store.

    Args:
        folder: Store folder.
        split: `train` or `valid`.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        pool_rows: Rows that are mixed at once, rounded up to whole blocks; the memory that the reader holds is
            pool_rows * (d_model * bytes per value + 8).
        cache: Keeps blocks of a remote store on this disk, and lets the next pool come while this one is used.

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
    ) -> None:
        self.store = BlockStore(folder, split, cache)
        self.batch_size = batch_size
        self.seed = seed
        if self.store.num_rows == 0:
            raise DataError(f"split '{split}' of the store is empty", where=str(folder), fix="extract more sequences")
        self._block_rows = np.array([block.num_rows for block in self.store.blocks], dtype=np.int64)
        self._group_blocks = max(1, -(-pool_rows // int(self._block_rows.max())))
        self._pool = torch.empty(0, self.d_model, dtype=self.store.metadata.torch_dtype)
        self._pooled: tuple[int, int] | None = None
        self._order = np.empty(0, dtype=np.int64)
        self._epoch_plan = lru_cache(maxsize=2)(self._plan)

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self.store.num_rows

    @property
    def d_model(self) -> int:
        """Row width."""
        return self.store.d_model

    def batch(self, step: int, out: Tensor | None = None) -> Tensor:
        """The batch of a step.

        Args:
            step: 0-based.
            out: fp32 [batch_size, d_model] to write into; by default a new tensor.

        Returns:
            fp32 [batch_size, d_model]: rows step * batch_size and on of the endless stream of epochs.
        """
        if out is None:
            out = torch.empty(self.batch_size, self.d_model)
        position, filled = step * self.batch_size, 0
        while filled < self.batch_size:
            epoch, row = divmod(position + filled, self.num_rows)
            _, starts = self._epoch_plan(epoch)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            self._load(epoch, group)
            first = row - int(starts[group])
            take = min(self.batch_size - filled, len(self._order) - first)
            _gather(self._pool, self._order[first : first + take], out[filled : filled + take])
            filled += take
        return out

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Order of the blocks in an epoch, and the row at which each group of blocks starts."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._block_rows))
        ends = np.cumsum(self._block_rows[order])
        starts = np.concatenate([[0], ends[self._group_blocks - 1 : -1 : self._group_blocks]])
        return order, starts

    def _load(self, epoch: int, group: int) -> None:
        """Bring a group into the pool."""
        if self._pooled == (epoch, group):
            return
        self._pooled = None
        blocks = self._blocks_of(epoch, group)
        num_rows = sum(block.num_rows for block in blocks)
        if len(self._pool) < num_rows:
            self._pool = torch.empty(num_rows, self.d_model, dtype=self._pool.dtype)
        self.store.read(blocks, self._pool[:num_rows])
        self.store.prefetch(self._blocks_of(epoch, group + 1) or self._blocks_of(epoch + 1, 0))
        generator = np.random.default_rng([self.seed, epoch, group + 1])
        self._order = generator.permutation(num_rows)
        self._pooled = (epoch, group)

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
