"""Activation stores in a bucket: chunks as they are made, and what makes the store complete at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from plmsae.activations.metadata import METADATA, read_metadata
from plmsae.artifacts.s3 import S3, S3Uri

MADE_FROM = "made_from.json"
RECORDS = "parts"


class Upload:
    """Chunks on their way into a bucket.

    Args:
        place: Address below which this store, and no other, lies.
        made_from: What it is made from, JSON; written there first.
        resume_key: Names everything that the bytes depend on. With it the records of finished parts are kept in the
            bucket as well, and an extraction that starts again on another machine takes them over.

    Raises:
        UserError: No such bucket, or no permission to write: better known before hours of work.
        TryAgainError: The bucket cannot be reached.
    """

    def __init__(self, place: S3Uri, made_from: str, resume_key: str | None = None) -> None:
        self.place = place
        self._store = S3()
        self._store.put(place / MADE_FROM, made_from.encode())
        self._records = place / RECORDS / resume_key if resume_key else None
        self._recorded = {name for name, _ in self._store.list(self._records)} if self._records else set()

    def is_there(self, split: str, name: str, num_bytes: int, sha256: str) -> bool:
        """Whether the bucket holds a chunk of that size and content."""
        info = self._store.head(self.place / split / name)
        return info is not None and info.num_bytes == num_bytes and info.metadata.get("sha256") == sha256

    def send(self, file: Path, split: str, name: str, sha256: str) -> None:
        """Bring a chunk into the bucket, unless it is there.

        Raises:
            UserError: No such bucket, or no permission to write.
            TryAgainError: The bucket cannot be reached.
        """
        if not self.is_there(split, name, file.stat().st_size, sha256):
            self._store.upload(file, self.place / split / name, {"sha256": sha256})

    def is_recorded(self, part: str, names: Sequence[str]) -> bool:
        """Whether the bucket had the record of a part at the start, or keeps none."""
        return self._records is None or all(f"{part}/{name}" in self._recorded for name in names)

    def record(self, part: str, files: Sequence[Path]) -> None:
        """Keep small files of a finished part; the last one makes the record complete."""
        if self._records is not None:
            for file in files:
                self._store.put(self._records / part / file.name, file.read_bytes())

    def restore(self, part: str, folder: Path, names: Sequence[str]) -> None:
        """Bring back what `record` kept of a part into its folder, which appears whole; nothing if there is nothing."""
        if self._records is None or not self.is_recorded(part, names):
            return
        temporary = folder.with_name(f".{folder.name}")
        for old in (folder, temporary):
            shutil.rmtree(old, ignore_errors=True)
        for name in names:
            self._store.download(self._records / part / name, temporary / name)
        os.rename(temporary, folder)


def publish(folder: Path) -> None:
    """Upload the description of a checked store, `store.json` last: a store in a bucket without one is not complete.

    Args:
        folder: Store folder; one that holds its chunks itself is left alone.

    Raises:
        UserError: No such bucket, or no permission to write.
        TryAgainError: The bucket cannot be reached.
    """
    location = read_metadata(folder).location
    if location is None:
        return
    place, store = S3Uri.parse(location), S3()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / METADATA)
    for path in [*files, folder / METADATA]:
        store.put(place / path.relative_to(folder).as_posix(), path.read_bytes())
