"""Blocks of remote stores in a folder of bounded size.

A file is named by the sha256 of its content, so a cache can be shared by readers, survives a kill, and a damaged file
is noticed and fetched again. Room is taken before a byte is written: the folder never holds more than the cap.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from plmsae.artifacts.checksums import sha256_bytes

logger = logging.getLogger("plmsae")
_NAME = re.compile(r"[0-9a-f]{64}")


class _Shelf:
    """Blocks by sha256, in order, and their bytes in all."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[str, int] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self.blocks

    def add(self, sha256: str, num_bytes: int) -> None:
        self.blocks[sha256] = num_bytes
        self.num_bytes += num_bytes

    def remove(self, sha256: str) -> int:
        num_bytes = self.blocks.pop(sha256, 0)
        self.num_bytes -= num_bytes
        return num_bytes


class BlockCache:
    """A cache; leaving its `with` block waits until nothing writes into the folder any more.

    What goes first is what was read last: every epoch reads each block once, in a new order, so a block that was just
    read is needed again only in the next epoch, and one that was not is needed sooner. A share of the blocks thereby
    stays for good, and that share of each epoch comes from this disk (least-recently-used would keep nothing useful).
    Blocks that were fetched ahead and not read yet stay.

    Args:
        folder: Folder of the cache; what a killed run left in it is taken over.
        max_bytes: Cap on the bytes in it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._changed = threading.Condition()
        self._read = _Shelf()  # the last read at the end
        self._ahead = _Shelf()  # fetched and not read yet, the oldest first
        self._writing = _Shelf()
        self._closed = False
        if folder.is_dir():
            self._take_over()

    def __enter__(self) -> BlockCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._writing.blocks)

    @property
    def num_bytes(self) -> int:
        """Bytes in the folder, with the room that is taken for what is being written."""
        return self._read.num_bytes + self._ahead.num_bytes + self._writing.num_bytes

    def get(self, sha256: str) -> bytes | None:
        """The block of that sha256, or None if it is not there."""
        with self._changed:
            if sha256 not in self._read and sha256 not in self._ahead:
                return None
            self._read.add(sha256, self._ahead.remove(sha256) or self._read.remove(sha256))
            try:
                handle = (self.folder / sha256).open("rb")
            except OSError:
                self._drop(sha256)
                return None
        with handle:  # an open file stays readable, should another thread evict it now
            data = handle.read()
        if sha256_bytes(data) == sha256:
            return data
        logger.warning("a damaged block of the cache is fetched again")
        with self._changed:
            self._drop(sha256)
        return None

    def claim(self, sha256: str, num_bytes: int, *, ahead: bool = False) -> bool:
        """Take room for a block; who gets True fetches it and calls `put` or `give_up`.

        Args:
            sha256: The block.
            num_bytes: Its size.
            ahead: It is fetched ahead of its use, and may displace older blocks that were.

        Returns:
            False if it is there or on its way already, or there is no room for it.
        """
        with self._changed:
            there = sha256 in self._read or sha256 in self._ahead or sha256 in self._writing
            if self._closed or there or num_bytes > self.max_bytes:
                return False
            stays = self._writing.num_bytes + (0 if ahead else self._ahead.num_bytes)
            if stays + num_bytes > self.max_bytes:
                return False
            while self.num_bytes + num_bytes > self.max_bytes:
                self._drop(next(reversed(self._read.blocks), None) or next(iter(self._ahead.blocks)))
            self._writing.add(sha256, num_bytes)
            return True

    def put(self, sha256: str, data: bytes, *, ahead: bool = False) -> None:
        """Write a claimed block; a disk that is full or broken costs speed and not the training."""
        temporary = self.folder / f"{sha256}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(self.folder / sha256)
        except OSError as error:
            logger.warning("a block cannot be kept on this disk: %s", error)
            with suppress(OSError):
                temporary.unlink()
            self.give_up(sha256)
            return
        with self._changed:
            (self._ahead if ahead else self._read).add(sha256, self._writing.remove(sha256))
            self._changed.notify_all()

    def give_up(self, sha256: str) -> None:
        """Free the room of a claimed block that did not come."""
        with self._changed:
            self._writing.remove(sha256)
            self._changed.notify_all()

    def _take_over(self) -> None:
        for path in sorted(self.folder.iterdir()):
            if _NAME.fullmatch(path.name) and path.is_file():
                self._read.add(path.name, path.stat().st_size)
            else:
                path.unlink()  # half-written by a killed run
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._read.blocks)))

    def _drop(self, sha256: str) -> None:
        self._read.remove(sha256)
        self._ahead.remove(sha256)
        (self.folder / sha256).unlink(missing_ok=True)
