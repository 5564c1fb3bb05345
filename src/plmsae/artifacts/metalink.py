"""`RELEASE.metalink`: the list beside UniProt's files that says their release, sizes and md5 (Metalink 3.0)."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from plmsae.errors import DataError

NAME = "RELEASE.metalink"
_MD5 = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Listed:
    """Size in bytes and hex md5 of a file, each None where the list does not say it."""

    num_bytes: int | None
    md5: str | None


@dataclass(frozen=True)
class Metalink:
    """The release, e.g. 2025_04, and the files of a folder."""

    release: str
    files: dict[str, Listed]
    text: str


def parse(text: str, where: str) -> Metalink:
    """Parse a list.

    Raises:
        DataError: It is not one.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"the list of files cannot be read ({error})", where=where, fix="run again later") from error
    release, files = "", dict[str, Listed]()
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        if tag == "version" and not release:
            release = (element.text or "").strip()
        elif tag == "file" and element.get("name"):
            fields = {child.tag.rpartition("}")[2]: child for child in element.iter()}
            size = (fields["size"].text or "").strip() if "size" in fields else ""
            sums = [child for child in element.iter() if child.tag.rpartition("}")[2] == "hash"]
            md5 = next(((child.text or "").strip().lower() for child in sums if child.get("type") == "md5"), "")
            files[str(element.get("name"))] = Listed(
                int(size) if size.isdigit() else None, md5 if _MD5.fullmatch(md5) else None
            )
    if root.tag.rpartition("}")[2] != "metalink":
        raise DataError("the list of files is no metalink", where=where, fix="check the address")
    return Metalink(release, files, text)


def release_of(path: Path) -> str:
    """The release of a file on this disk by the list that lies beside it; empty if none does, or it is not listed.

    Raises:
        DataError: The list cannot be read, or the file is not the one that it means.
    """
    listing = path.parent / NAME
    if not listing.is_file():
        return ""
    found = parse(listing.read_text(encoding="utf-8", errors="replace"), str(listing))
    listed = found.files.get(path.name)
    if listed is None:
        return ""
    check(path, listed, str(path))
    return found.release


def check(path: Path, listed: Listed, shown: str) -> None:
    """Compare a file with what its publisher says about it.

    Args:
        path: The file.
        listed: What the list says.
        shown: Its address, for the message.

    Raises:
        DataError: Size or md5 differ.
    """
    size, problem = path.stat().st_size, ""
    if listed.num_bytes is not None and size != listed.num_bytes:
        problem = f"has {size:,} bytes, not {listed.num_bytes:,}"
    elif listed.md5 is not None:
        with path.open("rb") as handle:
            md5 = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        problem = f"has md5 {md5}, not {listed.md5}" if md5 != listed.md5 else ""
    if problem:
        raise DataError(
            f"'{shown}' {problem} as its publisher says",
            fix="bring it again; if it stays so, file and list are of two releases or damaged",
        )
