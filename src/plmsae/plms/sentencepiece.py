"""The pieces of a SentencePiece model file, in the order of their ids, without the library.

The file is a protocol buffer (`sentencepiece_model.proto`): field 1 of the message repeats a piece, whose field 1 is
its text. All else is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from plmsae.errors import DataError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_pieces(path: Path) -> list[str]:
    """The pieces.

    Raises:
        DataError: Not such a file.
    """
    try:
        pieces = [
            text.decode("utf-8")
            for number, piece in _fields(path.read_bytes())
            if number == 1
            for inner, text in _fields(piece)
            if inner == 1
        ]
        if not pieces:
            raise ValueError("no pieces")
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"'{path.name}' is not a SentencePiece model", where=f"{path}: {error}", fix="download it again"
        ) from error
    return pieces


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and contents of every field of a message that holds bytes; others are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, position = _varint(message, position)
            if position + length > len(message):
                raise ValueError("cut short")
            yield tag >> 3, message[position : position + length]
            position += length
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
