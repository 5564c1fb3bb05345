"""One door to raw files: on this disk, in a bucket, on a web server."""

from __future__ import annotations

from pathlib import Path

from plmsae.errors import UserError


def is_remote(address: str) -> bool:
    """True for an address with a scheme: every task of a cluster can read it."""
    return "://" in address


def fetch(address: str, folder: Path, *, sha256: str | None = None, where: str | None = None) -> Path:
    """Bring a remote file to this disk, unless it is there already.

    Args:
        address: `s3://BUCKET/KEY`, `http://...` or `https://...`.
        folder: Folder of fetched files.
        sha256: Hex sha256 that the caller will insist on.
        where: Where the address stands, for messages.

    Raises:
        UserError: The address is wrong or of another kind, or the file may not be read.
        DataError: A file that is too large, or not the one that its publisher means.
        TryAgainError: The store or server cannot be reached, or stays busy.
    """
    from plmsae.artifacts import http, http_cache, s3

    if address.startswith(s3.SCHEME):
        return s3.fetch(address, folder)
    if address.startswith(http.SCHEMES):
        return http_cache.fetch(http.check_url(address, where), folder, sha256)
    scheme = address.partition("://")[0]
    raise UserError(
        f"'{address}' is of a kind that is not read ({scheme})",
        where=where,
        fix="servers of ftp:// mostly answer to https:// too"
        if scheme == "ftp"
        else "use a path, s3://BUCKET/KEY, https:// or http://",
    )
