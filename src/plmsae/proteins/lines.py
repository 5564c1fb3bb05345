"""Text files by lines or in pieces, plain or gzip; every defect of a file becomes a message that names the line."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from plmsae.errors import DataError, UserError

MAX_LINE_BYTES = 1 << 26
CHUNK_BYTES = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield `(1-based line number, line without its end)`.

    Gzip is recognised by content. Line ends may be LF, CRLF or CR; a UTF-8 byte order mark is dropped. Memory is
    bounded by one line of at most 64 MiB, whatever the file (or the compressed stream) holds.

    Raises:
        UserError: The file does not exist or cannot be read.
        DataError: It is not UTF-8, is gzip that is truncated or corrupted, or has a line beyond the bound.
    """
    place = _Place()
    with _defects_named(path, place), _open(path) as handle:
        while line := handle.readline(MAX_LINE_BYTES):
            if len(line) == MAX_LINE_BYTES:
                raise DataError(
                    f"a line is longer than {MAX_LINE_BYTES >> 20} MiB",
                    where=f"{path}, line {place.line + 1}",
                    fix="this is not a file of protein sequences; check the file",
                )
            if place.line == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if b"\r" not in line:
                place.line += 1
                yield place.line, line.removesuffix(b"\n").decode("utf-8")
                continue
            for part in line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                place.line += 1
                yield place.line, part.decode("utf-8")


def read_chunks(path: Path, size: int = CHUNK_BYTES) -> Iterator[str]:
    """Yield the text of a file piece by piece, for formats that do not go by lines.

    Gzip is recognised by content; a UTF-8 byte order mark is dropped.

    Args:
        path: The file.
        size: Bytes that are read at once.

    Raises:
        UserError: The file does not exist or cannot be read.
        DataError: It is not UTF-8, or is gzip that is truncated or corrupted.
    """
    place = _Place(line=1)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with _defects_named(path, place), _open(path) as handle:
        while data := handle.read(size):
            text = _decoded(decoder, data, place)
            place.line += text.count("\n")
            yield text
        _decoded(decoder, b"", place, final=True)


def _decoded(decoder: codecs.IncrementalDecoder, data: bytes, place: _Place, *, final: bool = False) -> str:
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        place.line += error.object.count(b"\n", 0, error.start)
        raise


@dataclass
class _Place:
    """Line that a reader is at."""

    line: int = 0


@contextmanager
def _defects_named(path: Path, place: _Place) -> Iterator[None]:
    """Turns what Python raises for a damaged file into a `DataError` that names the line."""
    try:
        yield
    except UnicodeDecodeError as error:
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise DataError(
            f"the file is not UTF-8 (byte 0x{error.object[error.start]:02x} in column {column})",
            where=f"{path}, line {place.line}",
            fix="save it as UTF-8 text, or compress it with gzip if it should be compressed",
        ) from error
    except EOFError as error:
        raise DataError(
            "the gzip file is truncated: it ends before its end marker",
            where=f"{path}, after line {place.line}",
            fix="download or copy the file again",
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"the gzip file is corrupted ({error})",
            where=f"{path}, after line {place.line}",
            fix="download or copy the file again",
        ) from error


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise UserError(
            f"file '{path}' does not exist" if not path.exists() else f"'{path}' is not a file",
            fix="correct the path; the demo data come with: dvc pull data.dvc",
        )
    try:
        with path.open("rb") as handle:
            packed = handle.read(2) == _GZIP_MAGIC
        return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")
    except PermissionError as error:
        raise UserError(f"file '{path}' may not be read", fix="change its permissions") from error
