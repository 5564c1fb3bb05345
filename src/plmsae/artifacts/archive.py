"""Files out of tar archives, which are read once, from front to back."""

from __future__ import annotations

import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from plmsae.errors import DataError, UserError

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def is_archive(path: Path) -> bool:
    """True for a tar archive by its name."""
    return path.name.lower().endswith(_SUFFIXES)


def extract_member(path: Path, member: str, folder: Path) -> Path:
    """Bring one file of an archive to `folder`, unless it is there already.

    Args:
        path: The archive, compressed or not.
        member: Path or name of the file inside it.
        folder: Where to.

    Raises:
        UserError: It has no such file; the message names those that it has.
        DataError: The archive is cut or corrupted.
    """
    target = folder / PurePosixPath(member).name
    if target.is_file():
        return target
    names = []
    for name, data in _files(path):
        names.append(name)
        if name.removeprefix("./") == member or PurePosixPath(name).name == member:
            _write(data, target, path)
            return target
    raise UserError(
        f"the archive has no file '{member}'",
        where=str(path),
        fix=f"it has {', '.join(repr(name) for name in names[:10])}" + (", ..." if len(names) > 10 else ""),
    )


def unpack(path: Path, folder: Path) -> Path:
    """Bring all files of an archive to `folder`, which is made anew; links and devices are passed over.

    Raises:
        DataError: The archive is cut or corrupted, or a file of it would lie outside the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in _files(path):
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise DataError(f"file '{name}' of the archive is outside of it", where=str(path), fix="make it anew")
        _write(data, folder / place, path)
    return folder


def _files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and contents of each regular file, in the order of the archive."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for item in archive:
                data = archive.extractfile(item) if item.isfile() else None
                if data is not None:
                    with data:
                        yield item.name, data
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _write(data: IO[bytes], target: Path, archive: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as handle:
            while piece := _read(data, archive):
                handle.write(piece)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read(data: IO[bytes], archive: Path) -> bytes:
    """The next piece of a file; a cut archive shows here as well."""
    try:
        return data.read(1 << 20)
    except _DAMAGE as error:
        raise _damaged(archive, error) from error


def _damaged(path: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:  # not of the archive but of the disk
        return error
    words = " ".join(str(error).split())[:80] or type(error).__name__
    return DataError(f"the archive cannot be read ({words})", where=str(path), fix="download or copy it again")
