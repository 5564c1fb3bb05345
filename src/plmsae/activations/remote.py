"""Chunks in a bucket, read block by block: ranged requests, several at a time, each block verified by its sha256."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from plmsae.activations.cache import BlockCache
from plmsae.activations.chunks import Block, corrupted, missing
from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.s3 import S3, S3Uri
from plmsae.artifacts.s3_errors import NoSuchObjectError

FIX = "delete what is left of it and extract again, which makes only its part: dvc repro --force extract_activations"
MAX_REQUESTS = 8
MAX_BYTES_IN_FLIGHT = 256 * 2**20  # of blocks on their way: what reading holds in memory beside its target


class RemoteChunks:
    """The chunks of a split in a bucket.

    Args:
        place: Address of the split.
        sizes: Chunk -> bytes, according to the index.
        blocks: All blocks of the split.
        row_bytes: Bytes of a row.
        cache: Where blocks are kept on this disk, if anywhere.

    Raises:
        UserError: No permission to read the bucket, or no such bucket.
        DataError: A chunk is missing or of another size; the message names it.
        TryAgainError: The bucket cannot be reached.
    """

    def __init__(
        self,
        place: S3Uri,
        sizes: Mapping[str, int],
        blocks: Sequence[Block],
        row_bytes: int,
        cache: BlockCache | None,
    ) -> None:
        self.place, self.cache, self.row_bytes = place, cache, row_bytes
        self._store = S3()
        found = dict(self._store.list(place))
        for name in dict.fromkeys([*sizes, *(block.chunk for block in blocks)]):
            if name not in found:
                raise missing(name, str(place / name), FIX)
            if found[name] != sizes.get(name):
                raise corrupted(name, str(place / name), f"has {found[name]} bytes, not {sizes.get(name)}", FIX)
        largest = max((block.num_rows for block in blocks), default=1) * row_bytes
        self._pool = ThreadPoolExecutor(
            max(1, min(MAX_REQUESTS, MAX_BYTES_IN_FLIGHT // largest)), thread_name_prefix="blocks"
        )
        self._coming: dict[str, Future[None]] = {}

    def read(self, work: Sequence[tuple[Block, memoryview]]) -> None:
        """See `Chunks`; blocks that are on their way are waited for, the others are requested."""
        coming = self._stop_prefetching(keep={block.sha256 for block, _ in work})
        for future in coming:
            future.exception()  # of a failed prefetch; the read below meets the failure itself, or not any more
        futures = [self._pool.submit(self._read, block, out) for block, out in work]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()

    def prefetch(self, blocks: Sequence[Block]) -> None:
        """See `Chunks`; takes at most half of the cache, which another reader may share."""
        self._stop_prefetching(keep=set())
        if self.cache is None:
            return
        left = self.cache.max_bytes // 2
        for block in blocks:
            left -= block.num_rows * self.row_bytes
            if left < 0:
                return
            self._coming[block.sha256] = self._pool.submit(self._fetch_ahead, self.cache, block)

    def _stop_prefetching(self, keep: set[str]) -> list[Future[None]]:
        """Cancel what has not started; returns what is running and wanted."""
        coming = [future for sha256, future in self._coming.items() if not future.cancel() and sha256 in keep]
        self._coming.clear()
        return coming

    def _read(self, block: Block, out: memoryview) -> None:
        data = self.cache.get(block.sha256) if self.cache else None
        if data is None:
            data = self._keep(self.cache, block) if self.cache else None
        out[:] = self._download(block) if data is None else data

    def _fetch_ahead(self, cache: BlockCache, block: Block) -> None:
        self._keep(cache, block, ahead=True)

    def _keep(self, cache: BlockCache, block: Block, *, ahead: bool = False) -> bytes | None:
        """Download a block into the cache, or None if it is there or there is no room for it."""
        if not cache.claim(block.sha256, block.num_rows * self.row_bytes, ahead=ahead):
            return None
        try:
            data = self._download(block)
        except BaseException:
            cache.give_up(block.sha256)
            raise
        cache.put(block.sha256, data, ahead=ahead)
        return data

    def _download(self, block: Block) -> bytes:
        address = self.place / block.chunk
        for _ in range(2):  # a block that was damaged on its way is right the second time
            try:
                data = self._store.get(address, block.offset, block.num_rows * self.row_bytes)
            except NoSuchObjectError as error:
                raise missing(block.chunk, str(address), FIX) from error
            if sha256_bytes(data) == block.sha256:
                return data
        raise corrupted(
            block.chunk, str(address), f"holds other values than were stored (block at byte {block.offset})", FIX
        )
