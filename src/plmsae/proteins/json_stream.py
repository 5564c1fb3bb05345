"""Objects out of a JSON file of any size, one at a time.

Three forms are read, told apart on the way: one object with a list under a known key (`{"results": [...]}`), a list,
and objects one after another (JSON Lines, or a single one). Only one object is in memory at a time, at most 64 MiB of
text, however long the file or its lines are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from plmsae.errors import DataError
from plmsae.proteins.lines import read_chunks

MAX_VALUE_CHARS = 1 << 26
_BLANKS = " \t\r\n"
# An error this close to the end of what was read may only mean that the rest is still to come.
_UNFINISHED_CHARS = 16


def read_objects(path: Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(1-based line at which it starts, object)`.

    Args:
        path: The file, gzip or not.
        key: Key of the list in the form with one object.

    Raises:
        UserError: The file does not exist or cannot be read.
        DataError: It is not UTF-8, not JSON, cut off, damaged gzip, or holds something else than objects.
    """
    source = _Source(path)
    while source.peek():
        if source.peek() == "[":
            yield from source.items()
        else:
            line = source.line
            source.expect("{", "an object")
            members: dict[str, Any] = {}
            listed = False
            while source.peek() != "}":
                if members or listed:
                    source.expect(",", "',' or '}'")
                if source.peek() != '"':
                    source.fail("expected a name in quotes")
                name = source.value()
                source.expect(":", "':'")
                if name == key and source.peek() == "[":
                    listed = True
                    yield from source.items()
                else:
                    members[name] = source.value()
            source.expect("}", "'}'")
            if not listed:
                yield line, members


class _Source:
    """The text of the file from where the reader is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chunks = read_chunks(path)
        self._text = ""
        self._at = 0
        self._more = True
        self._line = 1  # of the start of _text
        self._decoder = json.JSONDecoder(parse_constant=self._constant)

    @property
    def line(self) -> int:
        """1-based line of the next character."""
        return self._line + self._text.count("\n", 0, self._at)

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def expect(self, character: str, what: str) -> None:
        """Take one character that must be the next."""
        if self.peek() != character:
            self.fail(f"expected {what}")
        self._at += 1

    def items(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of a list, which starts here."""
        self.expect("[", "a list")
        first = True
        while self.peek() != "]":
            if not first:
                self.expect(",", "',' or ']'")
            first = False
            if self.peek() != "{":
                self.fail("expected an object")
            line = self.line
            yield line, self.value()
        self.expect("]", "']'")

    def value(self) -> Any:
        """The next value, decoded."""
        if not self.peek():
            self.fail("expected a value")
        wanted = 0  # characters to have before the next attempt; doubled, so that the work stays linear
        while True:
            while self._more and len(self._text) - self._at < wanted:
                self._read()
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                near_end = error.pos >= len(self._text) - _UNFINISHED_CHARS
                if self._more and (near_end or error.msg.startswith("Unterminated string")):
                    wanted = max(2 * (len(self._text) - self._at), 1)
                    if wanted > 2 * MAX_VALUE_CHARS:
                        self.fail(f"one entry has more than {MAX_VALUE_CHARS >> 20} MiB", "check that it is UniProt's")
                    continue
                self._at = error.pos
                if not self._more and near_end:
                    self._at = len(self._text)
                self.fail(error.msg[:1].lower() + error.msg[1:])
            except ValueError as error:  # a whole number of thousands of digits
                self.fail(" ".join(str(error).split())[:80])
            except RecursionError:
                self.fail("the JSON is nested too deeply", "check that it is UniProt's")
            # A number at the very end of the piece may go on in the next one.
            if end == len(self._text) and self._more and self._text[end - 1] not in '}]"':
                self._read()
                continue
            self._at = end
            return value

    def fail(self, problem: str, fix: str = "download the file again; it may have been cut off or edited") -> NoReturn:
        """Raise a `DataError` for what stands here, or for the end of the file."""
        if not self._more and self._at >= len(self._text):
            problem = "the JSON ends too early: it was cut off"
        raise DataError(f"the JSON cannot be read: {problem}", where=f"{self._path}, line {self.line}", fix=fix)

    def _read(self) -> bool:
        """Append one more piece and forget what was taken; False at the end of the file."""
        if self._at:
            self._line += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :], 0
        piece = next(self._chunks, None)
        self._more = piece is not None
        self._text += piece or ""
        return self._more

    def _constant(self, name: str) -> NoReturn:
        self.fail(f"{name} is not a JSON value")
