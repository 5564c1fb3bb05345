"""Manifests: every kind of damage is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plmsae.artifacts.checksums import sha256_bytes, sha256_file, sha256_tree
from plmsae.artifacts.manifest import Manifest, list_files, manifest_sha256, read_manifest, verify, write_manifest
from plmsae.errors import DataError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "sae").mkdir(parents=True)
    (folder / "metrics.json").write_text('{"fvu": 0.1}')
    (folder / "sae" / "weights.bin").write_bytes(bytes(range(256)))
    manifest = Manifest(
        stage="train_sae",
        kind="sae",
        params={"k": 8},
        inputs={},
        source_files={},
        environment={},
        files=list_files(folder),
    )
    write_manifest(folder, manifest)
    return folder


def test_an_intact_folder_verifies(output: Path) -> None:
    assert verify(output).params == {"k": 8}
    assert set(verify(output).files) == {"metrics.json", "sae/weights.bin"}


def test_a_flipped_byte_anywhere_is_found(output: Path) -> None:
    path = output / "sae" / "weights.bin"
    for position in (0, 100, 255):
        data = bytearray(range(256))
        data[position] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"sae/weights\.bin.*corrupted"):
            verify(output)


def test_a_truncated_a_missing_and_an_unknown_file_are_named(output: Path) -> None:
    (output / "extra.txt").write_text("x")
    with pytest.raises(DataError, match=r"extra\.txt.*not in the manifest"):
        verify(output)
    (output / "sae" / "weights.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="corrupted"):
        verify(output)
    (output / "sae" / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"sae/weights\.bin.*missing"):
        verify(output)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "x"}', '{"schema_version": 1, "surprise": 1}'])
def test_a_malformed_manifest_is_refused(output: Path, text: str) -> None:
    (output / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="not valid"):
        read_manifest(output)


def test_a_newer_schema_and_an_incomplete_output_are_refused(output: Path) -> None:
    data = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(DataError, match="newer"):
        read_manifest(output)
    (output / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a complete"):
        verify(output)


def test_the_manifest_of_equal_contents_has_equal_bytes(output: Path, tmp_path: Path) -> None:
    before = manifest_sha256(output)
    assert write_manifest(output, read_manifest(output)) == before


def test_known_sha256(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B.1.
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "abc") == expected


def test_the_hash_of_a_tree_sees_names_and_contents_but_not_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a.py", tmp_path / "b"
    b.mkdir()
    a.write_text("1")
    (b / "c.py").write_text("2")
    first = sha256_tree([a, b], tmp_path)
    assert sha256_tree([b, a], tmp_path) == first
    (b / "__pycache__").mkdir()
    (b / "__pycache__" / "c.pyc").write_text("noise")
    assert sha256_tree([a, b], tmp_path) == first
    (b / "c.py").rename(b / "d.py")
    assert sha256_tree([a, b], tmp_path) != first
