"""Training batches from a store: each epoch permutes the blocks, pools them group by group and mixes each pool."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from plmsae.activations.blocks import BlockStore
from plmsae.activations.cache import BlockCache
from plmsae.activations.chunks import Block
from plmsae.activations.pools import Key
from plmsae.activations.shuffle import ShuffledRows
from plmsae.errors import DataError

DEFAULT_POOL_ROWS = 131_072


class ActivationReader(ShuffledRows):
    """Batches of one split of a store; several threads may ask for them at the same time.

    Args:
        folder: Store folder.
        split: `train` or `valid`.
        batch_size: Rows of a batch.
        seed: Seed of the order.
        pool_rows: Rows that are mixed at once, rounded up to whole blocks; the memory that the reader holds is
            pool_rows * (d_model * bytes per value + 8).
        cache: Keeps blocks of a remote store on this disk, and lets the next pool come while this one is used.
        ahead: See `ShuffledRows`.
        rank: See `ShuffledRows`.
        world_size: See `ShuffledRows`.

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
        if self.store.num_rows == 0:
            raise DataError(f"split '{split}' of the store is empty", where=str(folder), fix="extract more sequences")
        self._block_rows = np.array([block.num_rows for block in self.store.blocks], dtype=np.int64)
        largest = int(self._block_rows.max())
        self._group_blocks = max(1, -(-pool_rows // largest))
        self._order_of = lru_cache(maxsize=2)(self._order)
        self._reading = threading.Lock()
        buffer = (min(self.num_rows, self._group_blocks * largest), self.store.d_model)
        dtype = self.store.metadata.torch_dtype
        super().__init__(batch_size, seed, buffer, dtype, ahead=ahead, rank=rank, world_size=world_size)

    @property
    def num_rows(self) -> int:
        """Rows of the split."""
        return self.store.num_rows

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Order of the blocks in an epoch."""
        return np.random.default_rng([self.seed, epoch, 0]).permutation(len(self._block_rows))

    def _starts(self, epoch: int) -> npt.NDArray[np.int64]:
        ends = np.cumsum(self._block_rows[self._order_of(epoch)])
        return np.concatenate([[0], ends[self._group_blocks - 1 : -1 : self._group_blocks]])

    def _fill(self, key: Key, rows: Tensor) -> int:
        blocks = self._blocks_of(*key)
        num_rows = sum(block.num_rows for block in blocks)
        with self._reading:
            self.store.read(blocks, rows[:num_rows])
            self.store.prefetch(self._blocks_of(*self._after(key)))
        return num_rows

    def _blocks_of(self, epoch: int, group: int) -> list[Block]:
        """The blocks of a group, in the order of the epoch."""
        order = self._order_of(epoch)
        return [self.store.blocks[i] for i in order[group * self._group_blocks : (group + 1) * self._group_blocks]]
