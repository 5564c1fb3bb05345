from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from plmsae.errors import DataError, UserError
from plmsae.proteins import lines
from plmsae.proteins.lines import read_lines


def texts(path: Path) -> list[tuple[int, str]]:
    return list(read_lines(path))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\rc", ["a", "b", "c"]),
        (b"\xef\xbb\xbfa\n\nb\n", ["a", "", "b"]),
        ("Ångström\n".encode(), ["Ångström"]),
        (b"", []),
    ],
)
def test_line_ends_and_byte_order_mark(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    assert texts(plain) == list(enumerate(expected, 1))
    assert texts(packed) == texts(plain)


def test_gzip_members_that_follow_each_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    assert [line for _, line in texts(path)] == ["a", "b"]


def test_a_truncated_gzip_is_named_at_any_length(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(32, 127)) * 50 + b"\n")
    path = tmp_path / "cut.gz"
    for length in (3, 12, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="truncated"):
            texts(path)


def test_a_flipped_bit_in_gzip_is_found(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(b"MKV" * 100 + b"\n"))
    whole[-6] ^= 1  # in the checksum
    path = tmp_path / "bad.gz"
    path.write_bytes(bytes(whole))
    with pytest.raises(DataError, match="corrupted"):
        texts(path)


@pytest.mark.parametrize("packed", [False, True])
def test_not_utf8_names_line_and_column(tmp_path: Path, packed: bool) -> None:
    data = b"abc\nde\xe9f\n"
    path = tmp_path / "latin1.txt"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(DataError, match=r"0xe9 in column 3") as error:
        texts(path)
    assert error.value.where == f"{path}, line 2"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        texts(tmp_path / "none")
    with pytest.raises(UserError, match="not a file"):
        texts(tmp_path)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"x\n" + b"A" * 10_000_000))
    with pytest.raises(DataError, match="longer than") as error:
        texts(path)
    assert error.value.where == f"{path}, line 2"
