from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from plmsae.artifacts.archive import extract_member, is_archive, unpack
from plmsae.errors import DataError, UserError


def archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


FILES = {"./a/one.dat": os.urandom(50_000), "two.dat": b"2" * 3_000_000}


@pytest.mark.parametrize(
    ("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz"), ("x.tar.xz", "w:xz")]
)
def test_a_member_or_all_of_them(tmp_path: Path, name: str, mode: str) -> None:
    path = archive(tmp_path / name, FILES, mode)
    assert is_archive(path)
    for member in ("one.dat", "a/one.dat"):
        assert extract_member(path, member, tmp_path / member.replace("/", "-")).read_bytes() == FILES["./a/one.dat"]
    folder = unpack(path, tmp_path / "all")
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert found == {"a/one.dat": FILES["./a/one.dat"], "two.dat": FILES["two.dat"]}


def test_what_is_not_in_it_is_said_with_what_is(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", FILES)
    with pytest.raises(UserError, match=r"no file 'three.dat'(.|\n)*'./a/one.dat', 'two.dat'"):
        extract_member(path, "three.dat", tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_cut_archive_leaves_nothing(tmp_path: Path, keep: int) -> None:
    whole = archive(tmp_path / "x.tar.gz", FILES)
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(whole.read_bytes()[:keep])
    for call in (lambda: extract_member(path, "one.dat", tmp_path / "out"), lambda: unpack(path, tmp_path / "all")):
        with pytest.raises(DataError, match="the archive cannot be read") as caught:
            call()
        assert str(path) in str(caught.value.where)
    assert not [file for file in (*tmp_path.glob("out/*"), *tmp_path.glob("all/**/*")) if file.is_file()]


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_files_outside_are_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "x.tar", {name: b"x"}, "w")
    with pytest.raises(DataError, match="is outside of it"):
        unpack(path, tmp_path / "all")
    assert not (tmp_path / "evil").exists()
