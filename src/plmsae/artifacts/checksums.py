"""sha256 of bytes, files and source folders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_bytes(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_tree(paths: Iterable[Path], root: Path) -> str:
    """One sha256 over the names and contents of `paths` (files, or folders walked), independent of their order."""
    files: set[Path] = set()
    for path in paths:
        found = path.rglob("*") if path.is_dir() else [path]
        files.update(file for file in found if file.is_file() and "__pycache__" not in file.parts)
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
