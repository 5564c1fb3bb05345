"""Damaged flat text and JSON: what is wrong, in which line and entry; and files larger than memory should be."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plmsae.errors import DataError
from plmsae.proteins import flat_text, json_stream
from plmsae.proteins.flat_text import read_uniprot_text
from plmsae.proteins.formats import detect_format, read_proteins
from plmsae.proteins.lines import read_chunks
from plmsae.proteins.uniprot_json import read_uniprot_json
from tests.proteins.renderings import Entry, Item, as_json, flat, json_text

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEK"
ENTRY = Entry("P12345", "Name", SEQUENCE, [Item("DOMAIN", "3", "9", "SH3")])
OTHER = Entry("P67890", "Other", "MKV")


def edited(old: str, new: str) -> str:
    text = flat([OTHER, ENTRY])
    assert text.count(old) >= 1
    head, _, tail = text.rpartition(old)
    return head + new + tail


def failure(tmp_path: Path, data: bytes | str, read: Callable[[Path], Iterator[Any]] = read_proteins) -> DataError:
    path = tmp_path / "in"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(DataError) as error:
        list(read(path))
    assert str(path) in str(error.value.where)
    assert error.value.fix
    return error.value


@pytest.mark.parametrize(
    ("old", "new", "problem", "where"),
    [
        ("53 AA;  0 MW", "52 AA;  0 MW", "53 residues but its length in the SQ line is '52'", "entry 'P12345'"),
        ("53 AA.", "54 AA.", "53 residues but its length in the ID line is '54'", "line 11, entry 'P12345'"),
        ("MKTAYIAKQR", "MKTAYIAKQK", "does not have its CRC64", "entry 'P12345'"),
        ("MKTAYIAKQR", "MKTAYIAK1R", "illegal residue '1' at position 9 of 'P12345'", "line 23"),
        ("3..9", "3..99", "DOMAIN 3..99 of 'P12345' is outside its sequence of 53", "line 18, entry 'P12345'"),
        ("3..9", "9..3", "ends before it starts", "line 18, entry 'P12345'"),
        ("3..9", "3-9", "'3-9' is not a location", "line 18, entry 'P12345'"),
        ('"SH3"', '"SH3', "a value has no closing quote", "line 18"),
        ("FT   DOMAIN          3..9\n", "", "a feature without a key", "line 18"),
        ("FT   DOMAIN          3..9", "FT   DOMAIN        3      9       SH3.", "until release 2019_10", "line 18"),
        ("AC   P12345; Q00000;\n", "", "a record has no name", "line 11"),
        ("ID   P12345_TEST            Reviewed; ", "ID   P12345_TEST ", "the entry cannot be read", "line 11"),
        ("SQ   SEQUENCE   53 AA;  0 MW; ", "SQ   SEQUENCE ", "the entry cannot be read", "entry 'P12345_TEST'"),
        ("RA   Somebody", "Somebody", "the line has no line code: 'Somebody A.B.;'", "line 17, entry 'P12345_TEST'"),
        ("\n//\n", "\n", "'P12345_TEST' that starts in line 11 does not end with '//'", "at its end"),
        ("ID   P12345", "XX   P12345", "expected an entry", "line 11"),
    ],
)
def test_damaged_flat_text(tmp_path: Path, old: str, new: str, problem: str, where: str) -> None:
    error = failure(tmp_path, edited(old, new))
    assert problem in error.problem
    assert where in str(error.where)


def test_half_an_entry_in_the_middle_is_named(tmp_path: Path) -> None:
    text = flat([OTHER])
    error = failure(tmp_path, text[: text.index("SQ")] + flat([ENTRY]))
    assert "'P67890_TEST' that starts in line 1 does not end with '//'" in error.problem
    assert "line 8" in str(error.where)


def test_an_entry_without_sequence_lines_is_refused(tmp_path: Path) -> None:
    text = flat([ENTRY])
    start = text.index("SQ   ")
    assert "0 residues but its length" in failure(tmp_path, text[:start] + "//\n").problem


@pytest.mark.parametrize("form", ["flat", "results", "list", "lines"])
def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    text = flat([OTHER, ENTRY]) if form == "flat" else json_text([OTHER, ENTRY], form)
    read = read_uniprot_text if form == "flat" else read_uniprot_json
    whole = {len(OTHER.accession)}
    if form in {"flat", "lines"}:  # a file that ends behind an entry is a shorter file
        end = len(flat([OTHER])) if form == "flat" else text.index("\n") + 1
        whole |= {end, end - 1, len(text) - 1}
    for length in range(1, len(text.rstrip()), 3):
        if length not in whole:
            assert failure(tmp_path, text[:length], read).exit_code == 3


@pytest.mark.parametrize("form", ["flat", "json"])
def test_truncated_gzip_and_bad_utf8_are_named(tmp_path: Path, form: str) -> None:
    data = (flat([OTHER, ENTRY]) if form == "flat" else json_text([OTHER, ENTRY], "lines")).encode()
    packed = gzip.compress(data)
    assert "truncated" in failure(tmp_path, packed[:-9]).problem
    broken = bytearray(packed)
    broken[-6] ^= 1
    assert "corrupted" in failure(tmp_path, bytes(broken)).problem
    read = read_uniprot_text if form == "flat" else read_uniprot_json
    error = failure(tmp_path, data.replace(b"=Name", b"=Na\xefe").replace(b'"Name"', b'"Na\xefe"'), read)
    assert "not UTF-8 (byte 0xef" in error.problem
    assert f"line {14 if form == 'flat' else 2}" in str(error.where)


def changed(**values: Any) -> str:
    entry = as_json([ENTRY])[0]
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(entry.get(name), dict):
            entry[name].update(value)
        else:
            entry[name] = value
    return json.dumps({"results": [as_json([OTHER])[0], entry]})


def feature(**values: Any) -> list[dict[str, Any]]:
    return [{**as_json([ENTRY])[0]["features"][0], **values}]


def location(start: Any, end: Any, modifier: str = "EXACT") -> dict[str, Any]:
    return {"start": {"value": start, "modifier": modifier}, "end": {"value": end, "modifier": "EXACT"}}


@pytest.mark.parametrize(
    ("values", "problem", "where"),
    [
        ({"sequence": {"length": 52}}, "53 residues but its length is '52'", "entry 'P12345'"),
        ({"sequence": {"md5": "0" * 32}}, "does not have its MD5", "entry 'P12345'"),
        ({"sequence": {"value": "MK1"}}, "illegal residue '1' at position 3", "line 1"),
        ({"sequence": None}, "there is no 'sequence'", "entry 'P12345'"),
        ({"sequence": "MKT"}, "'sequence' is str", "entry 'P12345'"),
        ({"primaryAccession": ""}, "a record has no name", "line 1"),
        ({"features": {"a": 1}}, "'features' is dict", "entry 'P12345'"),
        ({"features": ["x"]}, "is not an object", "entry 'P12345', feature 1"),
        ({"features": feature(type=None)}, "there is no 'type'", "feature 1"),
        ({"features": feature(location=location(3, 99))}, "DOMAIN 3..99 of 'P12345' is outside", "feature 1"),
        ({"features": feature(location=location(9, 3))}, "ends before it starts", "feature 1"),
        ({"features": feature(location=location("3", 9))}, "start '3' is not a position", "feature 1"),
        ({"features": feature(location=location(True, 9))}, "start True is not a position", "feature 1"),
        ({"features": feature(location=location(None, 9))}, "start None is not a position", "feature 1"),
        ({"features": feature(location={})}, "there is no 'start'", "feature 1"),
        ({"features": feature(description=3)}, "'description' is int", "feature 1"),
        ({"features": feature(ligand="Zn")}, "'ligand' is str", "feature 1"),
    ],
)
def test_damaged_json_entries(tmp_path: Path, values: dict[str, Any], problem: str, where: str) -> None:
    error = failure(tmp_path, changed(**values))
    assert problem in error.problem
    assert where in str(error.where)


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("{}", "it has no 'primaryAccession'", 1),
        ('{"results": []}', "no entries", None),
        ("[]", "no entries", None),
        ('{"results": 3}', "it has no 'primaryAccession'", 1),
        ('{"results":\n\n[1]}', "expected an object", 3),
        ('[{"a": 1},\n{"b": NaN}]', "it has no 'primaryAccession'", 1),
        ('{"primaryAccession": "P1",\n"x": NaN}', "NaN is not a JSON value", 2),
        ('{"primaryAccession": "P1"\n"x": 1}', "expected ',' or '}'", 2),
        ('{"primaryAccession": "P1", 3: 1}', "expected a name in quotes", 1),
        ('{"primaryAccession": "P\n1", "xxxxxxxxxxxxxxxxxxxxxxxxx": 1}', "invalid control character", 1),
        ('{"primaryAccession": "P1", "x": ' + "[" * 100_000 + "}", "nested too deeply", 1),
        ('{"primaryAccession": "P1", "x": ' + "9" * 5000 + "}", "limit", 1),
        (json_text([OTHER], "lines") + "\n\ngarbage", "expected an object", 4),
        (json_text([OTHER], "list") + "]", "expected an object", None),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, problem: str, line: int | None) -> None:
    error = failure(tmp_path, text, read_uniprot_json)
    assert problem in error.problem
    if line:
        assert f"line {line}" in str(error.where)


@pytest.mark.parametrize("size", [1, 2, 7, 61])
@pytest.mark.parametrize("form", ["results", "list", "lines"])
def test_where_the_pieces_end_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, form: str
) -> None:
    path = tmp_path / "in"
    entries = [OTHER, Entry("P1", 'é "x" \\ 12', "MK", [Item("SIGNAL", "1", "2")]), OTHER]
    path.write_text("\ufeff" + json_text(entries, form).replace("\\u00e9", "é"), encoding="utf-8")
    expected = list(read_uniprot_json(path))
    monkeypatch.setattr(json_stream, "read_chunks", lambda path: read_chunks(path, size))
    assert list(read_uniprot_json(path)) == expected
    assert [protein.name for protein in expected] == ["Other", 'é "x" \\ 12', "Other"]
    assert detect_format(path) == "uniprot_json"


@pytest.mark.parametrize("form", ["flat", "json"])
def test_an_entry_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form == "flat":
        monkeypatch.setattr(flat_text, "MAX_ENTRY_CHARS", 100_000)
        bomb = flat([ENTRY]).split("SQ")[0] + "FT                   /note=\n" * 1_000_000
    else:
        monkeypatch.setattr(json_stream, "MAX_VALUE_CHARS", 100_000)
        bomb = '{"primaryAccession": "' + "A" * 30_000_000
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(bomb.encode(), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="one entry has more than"):
            list(read_proteins(path))
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["flat", "json"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, form: str) -> None:
    """Four megabytes, the JSON on a single line."""
    path = tmp_path / "large"
    entry = Entry("P12345", "Name", SEQUENCE * 10, ENTRY.items * 20)
    one = flat([entry]) if form == "flat" else json.dumps(as_json([entry])[0])
    count = 4_000_000 // len(one)
    path.write_text(one * count if form == "flat" else '{"results": [' + ",".join([one] * count) + "]}")
    tracemalloc.start()
    try:
        assert sum(len(protein.features) for protein in read_proteins(path)) == 20 * count
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
