"""Text files line by line, plain or gzip, with every defect of the file turned into a message that names the line."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from plmsae.errors import DataError, UserError

MAX_LINE_BYTES = 1 << 26
_GZIP_MAGIC = b"\x1f\x8b"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield `(1-based line number, line without its end)`.

    Gzip is recognised by content. Line ends may be LF, CRLF or CR; a UTF-8 byte order mark is dropped. Memory is
    bounded by one line of at most 64 MiB, whatever the file (or the compressed stream) holds.

    Raises:
        UserError: The file does not exist or cannot be read.
        DataError: It is not UTF-8, is gzip that is truncated or corrupted, or has a line beyond the bound.
    """
    number = 0
    try:
        with _open(path) as handle:
            while line := handle.readline(MAX_LINE_BYTES):
                if len(line) == MAX_LINE_BYTES:
                    raise DataError(
                        f"a line is longer than {MAX_LINE_BYTES >> 20} MiB",
                        where=f"{path}, line {number + 1}",
                        fix="this is not a file of protein sequences; check the file",
                    )
                if number == 0:
                    line = line.removeprefix(codecs.BOM_UTF8)
                for part in line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                    number += 1
                    yield number, part.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8 (byte 0x{error.object[error.start]:02x} in column {error.start + 1})",
            where=f"{path}, line {number}",
            fix="save it as UTF-8 text, or compress it with gzip if it should be compressed",
        ) from error
    except EOFError as error:
        raise DataError(
            "the gzip file is truncated: it ends before its end marker",
            where=f"{path}, after line {number}",
            fix="download or copy the file again",
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"the gzip file is corrupted ({error})",
            where=f"{path}, after line {number}",
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
