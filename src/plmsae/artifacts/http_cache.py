"""Files of web servers that are kept on this disk, so that a file is brought once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.checksums import sha256_bytes, sha256_file
from plmsae.artifacts.http import Limits, check_url, get
from plmsae.artifacts.http_download import Known, download
from plmsae.artifacts.http_errors import NoSuchFileError, shown
from plmsae.artifacts.lock import alone
from plmsae.artifacts.metalink import NAME as METALINK
from plmsae.artifacts.metalink import Metalink, parse

_UNIPROT = "/databases/uniprot/"  # in the path at ftp.uniprot.org and at its mirrors


def fetch(url: str, folder: Path, sha256: str | None = None, limits: Limits | None = None) -> Path:
    """Bring a file of a web server to this disk, unless it is there already.

    With `sha256`, a file that was fetched before is taken without asking the server; without it, the server is asked
    whether the file is still the same (`If-None-Match`, `If-Modified-Since`). A file of UniProt is compared with the
    `RELEASE.metalink` beside it, which is kept with it.

    Args:
        url: The address.
        folder: Folder of fetched files.
        sha256: Hex sha256 that the caller will insist on.
        limits: See `Limits`.

    Returns:
        `folder/<hash of address and content>/<name>`: another content is another file, and the name is kept because the
        format of a file shows in it.

    Raises:
        UserError, DataError, TryAgainError: As `download`, or another process is fetching the same file.
    """
    check_url(url)
    key = sha256_bytes(url.encode())[:32]
    name = unquote(urlsplit(url).path).rpartition("/")[2].replace("/", "_").lstrip(".")[:120] or "file"

    def place(digest: str) -> Path:
        return folder / sha256_bytes(f"{url}\n{digest}".encode())[:32] / name

    if sha256 and place(sha256).is_file():
        if sha256_file(place(sha256)) == sha256:
            return place(sha256)
        place(sha256).unlink()
    record = folder / f"{key}.json"
    with alone(folder / f"{key}.lock", f"downloading '{shown(url)}'"):
        known, digest = _recorded(record)
        kept = digest is not None and place(digest).is_file()
        listing = _listing(url, limits)
        expected = listing.files.get(name) if listing else None
        partial = folder / f"{key}.partial" / name
        found = download(
            url,
            partial,
            unless=known if kept else None,
            listed=expected,
            verified_later=sha256 is not None,
            limits=limits,
        )
        if found is None and digest is not None:
            return place(digest)
        digest = sha256_file(partial)
        final = place(digest)
        final.parent.mkdir(parents=True, exist_ok=True)
        if listing is not None and expected is not None:
            write_text(final.parent / METALINK, listing.text)
        os.replace(partial, final)
        if found is not None:
            said = {"etag": found.etag, "last_modified": found.last_modified, "sha256": digest}
            write_text(record, json.dumps(said) + "\n")
        shutil.rmtree(partial.parent, ignore_errors=True)
    return final


def _listing(url: str, limits: Limits | None) -> Metalink | None:
    """The list beside a file of UniProt; None for other addresses, and where the server has none."""
    if _UNIPROT not in urlsplit(url).path:
        return None
    address = urljoin(url, METALINK)
    try:
        return parse(get(address, limits=limits).decode("utf-8", "replace"), address)
    except NoSuchFileError:
        return None


def _recorded(record: Path) -> tuple[Known | None, str | None]:
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        known = Known(str(said["etag"]), str(said["last_modified"]))
        return (known, str(said["sha256"])) if known.etag or known.last_modified else (None, None)
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
