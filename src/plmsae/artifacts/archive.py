"""One file out of a tar archive, which is read once and never unpacked as a whole."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from plmsae.errors import DataError, UserError

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
    folder.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    names = []
    try:
        with tarfile.open(path, "r|*") as archive:
            for item in archive:
                names.append(item.name)
                data = archive.extractfile(item) if item.isfile() and _is(item.name, member) else None
                if data is not None:
                    with data, temporary.open("wb") as handle:
                        shutil.copyfileobj(data, handle, 1 << 20)
                    os.replace(temporary, target)
                    return target
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"the archive cannot be read ({' '.join(str(error).split())[:80]})",
            where=str(path),
            fix="download or copy it again",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    raise UserError(
        f"the archive has no file '{member}'",
        where=str(path),
        fix=f"it has {', '.join(repr(name) for name in names[:10])}" + (", ..." if len(names) > 10 else ""),
    )


def _is(name: str, member: str) -> bool:
    return name.removeprefix("./") == member or PurePosixPath(name).name == member
