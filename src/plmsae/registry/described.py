"""What a registered SAE is, without its weights: the two small files of a package that say so."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.artifacts.checksums import sha256_file
from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256, read_manifest
from plmsae.errors import DataError
from plmsae.registry.connection import connect, locate, transfer
from plmsae.registry.load import PACKAGE_PATH
from plmsae.registry.versions import artifact_folder, only_champion, resolve
from plmsae.saes.files import CONFIG, read_config

if TYPE_CHECKING:
    from plmsae.saes.config import SaeConfig


@dataclass(frozen=True)
class Described:
    """A registered version.

    Attributes:
        name: Registered name.
        version: Version number.
        package_sha256: sha256 of the manifest of its package, which names every byte of it.
        config: What the SAE is and what it was trained on.
    """

    name: str
    version: int
    package_sha256: str
    config: SaeConfig

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`, which points at the same SAE tomorrow."""
        return f"models:/{self.name}/{self.version}"


def describe(uri: str | None, root: Path | None = None) -> Described:
    """Look a registered SAE up.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; None takes the only champion.
        root: The working folder, which decides where the embedded registry is.

    Raises:
        UserError: Unknown name, alias or version; none is named and there is not exactly one champion.
        DataError: The registry's copy is incomplete or damaged.
        TryAgainError: The registry cannot be reached.
    """
    with connect(root) as client:
        import mlflow

        name, version = resolve(client, uri or only_champion(client))
        source = artifact_folder(client, name, version, locate(root).artifacts).rstrip("/")
        listed = {Path(item.path).name for item in mlflow.artifacts.list_artifacts(f"{source}/{PACKAGE_PATH}")}
        if not {MANIFEST_NAME, CONFIG} <= listed:
            raise DataError(
                f"version {version} of '{name}' holds no SAE package",
                where=f"models:/{name}/{version}",
                fix="it was not registered by plmsae, or its files were removed: register it again",
            )
        with tempfile.TemporaryDirectory(prefix="plmsae-") as scratch, transfer():
            folder = Path(scratch)
            for file in (MANIFEST_NAME, CONFIG):
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source}/{PACKAGE_PATH}/{file}", dst_path=str(folder)
                )
            entry = read_manifest(folder).files.get(CONFIG)
            if entry is None or entry.sha256 != sha256_file(folder / CONFIG):
                raise DataError(
                    f"version {version} of '{name}': '{CONFIG}' is corrupted: its sha256 differs from the manifest",
                    where=f"models:/{name}/{version}",
                    fix="look again; if it stays so the registry's copy is damaged: run the register stage again",
                )
            return Described(name, version, manifest_sha256(folder), read_config(folder))
