"""The manifest of a stage output: what made it, from what, and the sha256 of every file in it.

`manifest.json` is written last, so a folder without one is not a complete output. It holds no time, host or path:
the same inputs, parameters and code give the same manifest bytes, and its own sha256 names the output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.checksums import sha256_file
from plmsae.errors import DataError

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1


class FileEntry(BaseModel):
    """Size in bytes and hex sha256 of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a stage wrote (see the module docstring).

    Attributes:
        stage: Id of the stage, e.g. `train_sae` or `evaluate@fidelity`.
        kind: The artifact type that travels, e.g. `activations` (DESIGN, What travels between stages).
        params: The resolved parameters of the stage.
        inputs: Input port -> sha256 of that input's manifest.
        source_files: Raw input file (as named in the parameters) -> its sha256.
        environment: What the numbers depend on beside inputs: kernel, threads, library versions.
        files: Relative POSIX path -> size and checksum of every other file of the folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    stage: str
    kind: str
    params: dict[str, Any]
    inputs: dict[str, str]
    source_files: dict[str, str]
    environment: dict[str, str]
    files: dict[str, FileEntry]


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Entries of every file below `folder` but the manifest."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(num_bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write `manifest.json` atomically and return its sha256."""
    path = folder / MANIFEST_NAME
    write_text(path, json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True) + "\n")
    return sha256_file(path)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an output folder.

    Raises:
        DataError: There is none (the output is incomplete) or it is malformed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise DataError(
            f"'{folder}' is not a complete stage output (no {MANIFEST_NAME})",
            where=str(folder),
            fix="run the stage that writes it: dvc repro",
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest.model_validate(data)
    except (ValueError, ValidationError) as error:
        raise DataError("the manifest is not valid", where=str(path), fix="run the stage again") from error
    if manifest.schema_version > SCHEMA_VERSION:
        raise DataError(
            f"manifest schema {manifest.schema_version} is newer than this plmsae reads ({SCHEMA_VERSION})",
            where=str(path),
            fix="update plmsae",
        )
    return manifest


def manifest_sha256(folder: Path) -> str:
    """The sha256 that names the output."""
    return sha256_file(folder / MANIFEST_NAME)


def verify(folder: Path) -> Manifest:
    """Check every file of an output against its manifest.

    Raises:
        DataError: A file is missing, changed or unknown; the message names it.
    """
    manifest = read_manifest(folder)
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST_NAME}
    fix = f"restore it with `dvc checkout`, or run the stage again: dvc repro --force {manifest.stage}"
    for name, entry in manifest.files.items():
        path = folder / name
        if name not in present:
            raise DataError(f"file '{name}' is missing", where=str(path), fix=fix)
        if path.stat().st_size != entry.num_bytes or sha256_file(path) != entry.sha256:
            raise DataError(
                f"file '{name}' is corrupted: its sha256 differs from the manifest", where=str(path), fix=fix
            )
    unknown = sorted(present - set(manifest.files))
    if unknown:
        raise DataError(f"file '{unknown[0]}' is not in the manifest", where=str(folder / unknown[0]), fix=fix)
    return manifest
