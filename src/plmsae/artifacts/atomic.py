"""Writes that are seen whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader (or a crash) meets the old bytes or the new ones, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def swap_folder(new: Path, final: Path, trash: Path) -> None:
    """Put the complete folder `new` at `final`; what stood there goes to `trash` and is deleted.

    All three must be on one file system. A kill at any instant leaves at `final` the old folder, the new one or
    nothing; a later call cleans `trash` up.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    trash.mkdir(parents=True, exist_ok=True)
    if final.exists():
        os.rename(final, trash / uuid.uuid4().hex)
    os.rename(new, final)
    shutil.rmtree(trash, ignore_errors=True)
