"""Activation stores in a bucket: chunks as they are made, and what makes the store complete at the end."""

from __future__ import annotations

from pathlib import Path

from plmsae.activations.metadata import METADATA, read_metadata
from plmsae.artifacts.s3 import S3, S3Uri

MADE_FROM = "made_from.json"


class Upload:
    """Chunks on their way into a bucket.

    Args:
        place: Address below which this store, and no other, lies.
        made_from: What it is made from, JSON; written there first.

    Raises:
        UserError: No such bucket, or no permission to write: better known before hours of work.
        TryAgainError: The bucket cannot be reached.
    """

    def __init__(self, place: S3Uri, made_from: str) -> None:
        self.place = place
        self._store = S3()
        self._store.put(place / MADE_FROM, made_from.encode())

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
