"""Files of web servers, with resume, progress and checks that nothing was cut.

What has arrived is kept in a partial file beside the target, so that the next attempt, or the next run, asks for the
rest only (`Range` with `If-Range`; RFC 9110, 13.1.5 and 14). A file appears under its name only when it is whole.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from plmsae.artifacts import http as web
from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.http import Limits, RangeRefusedError, check_url, content_length, opened, pieces, retrying
from plmsae.artifacts.http_errors import AskAgainError, shown
from plmsae.artifacts.metalink import Listed, check
from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.progress import Progress

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class Known:
    """What a server said about a file: with it, it can be asked whether the file is still the same."""

    etag: str = ""
    last_modified: str = ""

    @property
    def validator(self) -> str:
        """Text for `If-Range`: a strong entity tag, else the date, else empty."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


def download(
    url: str,
    path: Path,
    *,
    unless: Known | None = None,
    listed: Listed | None = None,
    verified_later: bool = False,
    label: str | None = "download",
    limits: Limits | None = None,
) -> Known | None:
    """Write a file of a server to `path`, which appears whole or not at all.

    Args:
        url: The address.
        path: Where to; `.<name>.part` beside it holds what has arrived so far, also after a failure or a kill.
        unless: Do nothing if the server says that the file is still this one.
        listed: Size and md5 that the file must have.
        verified_later: The caller knows the file's checksum, so an answer whose end cannot be told is taken as well.
        label: Name of the progress bar; None for none.
        limits: See `Limits`.

    Returns:
        What the server said about the file, or None if `unless` holds.

    Raises:
        UserError: The address is wrong, the server refuses, or the folder may not be written.
        DataError: The file is too large, not the one that `listed` means, or may have been cut.
        TryAgainError: The server cannot be reached, stays busy or keeps breaking off, or the disk is full; the next
            call goes on.
    """
    limits = limits or web.DEFAULT
    check_url(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    transfer = _Transfer(
        url, part, limits, unless, label, endless=verified_later or (listed is not None and listed.md5 is not None)
    )
    try:
        known = retrying(url, limits, transfer.attempt, transfer.num_bytes)
    finally:
        transfer.close()
    if known is None:
        return None
    if listed is not None:
        try:
            check(part, listed, shown(url))
        except DataError:
            part.unlink()  # the next run starts afresh
            raise
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(part, path)
    transfer.note.unlink(missing_ok=True)
    return known


class _Transfer:
    """A file on its way, over as many attempts as it takes."""

    def __init__(
        self, url: str, part: Path, limits: Limits, unless: Known | None, label: str | None, *, endless: bool
    ) -> None:
        self.url, self.part, self.limits, self.unless, self.endless = url, part, limits, unless, endless
        self._label = label
        self.note = part.with_name(part.name + ".json")
        self._progress: Progress | None = None

    def num_bytes(self) -> int:
        """Bytes that have arrived."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def close(self) -> None:
        """End the progress bar."""
        if self._progress is not None:
            self._progress.__exit__()

    def attempt(self) -> Known | None:
        """Ask for the file or for the rest of it, and write what comes."""
        offset, known = self._arrived()
        headers: dict[str, str] = {}
        if offset:
            headers = {"Range": f"bytes={offset}-", "If-Range": known.validator}
        elif self.unless is not None:
            named = {"If-None-Match": self.unless.etag, "If-Modified-Since": self.unless.last_modified}
            headers = {name: value for name, value in named.items() if value}
        try:
            with opened(self.url, headers, self.limits) as response:
                if response.status == 304:
                    return None
                return self._receive(response, offset)
        except RangeRefusedError as error:
            if error.total == offset:  # an earlier run had received all of it
                return known
            self.part.unlink(missing_ok=True)
            raise AskAgainError("the server refuses to go on in the middle of the file") from error

    def _arrived(self) -> tuple[int, Known]:
        """Where to go on, and what the server had said about the file by then."""
        if self.part.is_file() and self.note.is_file():
            try:
                said = json.loads(self.note.read_text(encoding="utf-8"))
                known = Known(str(said["etag"]), str(said["last_modified"]))
            except (ValueError, KeyError, TypeError):
                return 0, Known()
            if said.get("url") == self.url and known.validator:
                return self.num_bytes(), known
        return 0, Known()

    def _receive(self, response: http.client.HTTPResponse, offset: int) -> Known:
        start, total = _extent(response)
        if start != offset:
            if start:
                self.part.unlink(missing_ok=True)
                raise AskAgainError("the server sends another part of the file than it was asked for")
            offset = 0  # the whole file again: it changed, or the server knows no ranges
        if total is None and not response.chunked and not self.endless:
            raise DataError(
                f"the server of '{shown(self.url)}' does not say where the file ends, so a cut would not be seen",
                fix="set the sha256 that the file must have, or download it yourself and give its path",
            )
        self._check_room(total, offset)
        known = Known(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
        said = {"url": self.url, "etag": known.etag, "last_modified": known.last_modified}
        # The note goes first: bytes of one version are never taken for those of another.
        if not offset:
            self.part.unlink(missing_ok=True)
        with _disk(self.part):
            write_text(self.note, json.dumps(said) + "\n")
        if self._progress is None and self._label is not None:
            self._progress = Progress(self._label, total, "bytes", done=offset)
        self._advance(offset - self._progress.done if self._progress else 0)
        size = offset
        with _disk(self.part):
            handle = self.part.open("r+b" if offset else "wb", buffering=0)
        with handle:
            handle.seek(offset)
            for piece in pieces(response, self.limits):
                with _disk(self.part):
                    _write_all(handle, piece)
                size += len(piece)
                self._advance(len(piece))
                if size > self.limits.max_bytes:
                    raise _too_large(self.url, size, self.limits)
        if total is not None and size != total:
            if size > total:
                self.part.unlink(missing_ok=True)
            raise AskAgainError(f"the connection ended after {size:,} of {total:,} bytes")
        return known

    def _advance(self, num_bytes: int) -> None:
        if self._progress is not None:
            self._progress.update(num_bytes)

    def _check_room(self, total: int | None, offset: int) -> None:
        if total is None:
            return
        if total > self.limits.max_bytes:
            raise _too_large(self.url, total, self.limits)
        free = shutil.disk_usage(self.part.parent).free
        if total - offset > free:
            raise _disk_full(self.part, f"{(total - offset) / 2**30:.1f} GiB are to come, {free / 2**30:.1f} are free")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte of an answer in the file, and the size of the whole file if the server says it."""
    length = content_length(response)
    if response.status != 206:
        return 0, length
    found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if found is None:
        raise AskAgainError("the server sends a part of the file without saying which")
    start, end, total = int(found[1]), int(found[2]), found[3]
    return start, int(total) if total != "*" else end + 1


def _write_all(handle: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[handle.write(view) :]


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Failures to write, in words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _disk_full(path, "what has arrived is kept") from error
        raise UserError(
            f"the download cannot be written ({error.strerror})", where=str(path.parent), fix="check the folder"
        ) from error


def _disk_full(path: Path, detail: str) -> TryAgainError:
    return TryAgainError(f"the disk is full: {detail}", where=str(path.parent), fix="free some space and run again")


def _too_large(url: str, size: int, limits: Limits) -> DataError:
    return DataError(
        f"'{shown(url)}' has {size:,} bytes or more; files up to {limits.max_bytes:,} are taken",
        fix="check the address",
    )
