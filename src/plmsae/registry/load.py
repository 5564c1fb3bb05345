"""Loading a SAE from the registry or a folder, with our own reader only.

MLflow is asked for files, never for a model: its pyfunc loader would run the `model.py` that lies in the registry.
What is read is the package folder (`package.py`): safetensors, JSON and Parquet, each checked against its sha256.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae import saes
from plmsae.artifacts.manifest import MANIFEST_NAME, verify
from plmsae.errors import DataError, UserError
from plmsae.registry.connection import connect, locate, transfer
from plmsae.registry.latents import latent_names
from plmsae.registry.versions import artifact_folder, only_champion, resolve

if TYPE_CHECKING:
    from plmsae.saes.base import SparseAutoencoder

# Where the package lies inside the MLflow model (its `artifacts` entry named `package`).
PACKAGE_PATH = "artifacts/package"


@dataclass(frozen=True)
class Pulled:
    """A package on disk and the version that it is a copy of."""

    folder: Path
    name: str
    version: int


def load(uri_or_folder: str | Path, *, root: Path | None = None) -> SparseAutoencoder:
    """Load a trained SAE.

    Args:
        uri_or_folder: `models:/NAME@champion`, `models:/NAME/3`, or a folder: a pulled package, a SAE folder, or the
            output of `train_sae`.
        root: The working folder, which decides where the embedded registry is.

    Returns:
        The SAE in evaluation mode; `.config` says what it was trained on, `.concepts` what its latents mean, as far
        as a package says so.

    Raises:
        UserError: Unknown name, alias, version or folder.
        DataError: A file is missing, changed or malformed.
        TryAgainError: The registry cannot be reached.
    """
    text = str(uri_or_folder)
    if not text.startswith("models:"):
        return load_folder(Path(uri_or_folder))
    with tempfile.TemporaryDirectory(prefix="plmsae-") as folder:
        target = Path(folder) / "package"
        _download(text, target, root)
        return load_folder(target)


def pull(uri: str, folder: Path | None = None, *, root: Path | None = None) -> Pulled:
    """Copy the package of a registered version to a folder, whole or not at all.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        folder: Where to put it, by default `NAME-vVERSION` in the current folder.
        root: The working folder.

    Raises:
        UserError: The folder exists already, or the URI points at nothing.
    """
    if not uri.startswith("models:"):
        raise UserError(f"'{uri}' does not name a registered SAE", fix="models:/NAME@champion or models:/NAME/1")
    with connect(root) as client:
        name, version = resolve(client, uri)
    final = (folder or Path(f"{name}-v{version}")).absolute()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"'{final}' exists already", fix="remove it, or name another folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex}"
    try:
        _download(f"models:/{name}/{version}", temporary, root)
        if final.is_dir():
            final.rmdir()
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Pulled(folder or Path(final.name), name, version)


def is_sae_folder(folder: Path) -> bool:
    """Whether a folder holds a SAE: weights and configuration."""
    return (folder / "sae.safetensors").is_file() and (folder / "config.json").is_file()


def load_folder(folder: Path) -> SparseAutoencoder:
    """Load from a package, a SAE folder or the output of `train_sae`; a folder with a manifest is verified first."""
    if not folder.is_dir():
        raise UserError(
            f"'{folder}' is neither a folder nor a registered SAE",
            fix="name a SAE folder, or models:/NAME@champion (plmsae models lists the names)",
        )
    if (folder / MANIFEST_NAME).is_file():
        verify(folder)
    if not is_sae_folder(folder) and is_sae_folder(folder / "sae"):
        folder = folder / "sae"
    sae = saes.load_folder(folder)
    sae.concepts = latent_names(folder)
    return sae


def _download(uri: str, target: Path, root: Path | None) -> None:
    """Put the verified package of a version at `target`, which must not exist."""
    with connect(root) as client:
        import mlflow

        name, version = resolve(client, uri)
        source = artifact_folder(client, name, version, locate(root).artifacts)
        with tempfile.TemporaryDirectory(prefix="download-", dir=target.parent) as folder, transfer():
            mlflow.artifacts.download_artifacts(artifact_uri=f"{source.rstrip('/')}/{PACKAGE_PATH}", dst_path=folder)
            found = next((path for path in Path(folder).rglob("package") if path.is_dir()), None)
            if found is None:
                raise DataError(
                    f"version {version} of '{name}' holds no SAE package",
                    where=uri,
                    fix="it was not registered by plmsae, or its files were removed: register it again",
                )
            os.rename(found, target)
    try:
        verify(target)
    except DataError as error:
        shutil.rmtree(target)
        raise DataError(
            f"version {version} of '{name}': {error.problem}",
            where=uri,
            fix="pull it again; if it stays so the registry's copy is damaged: run the register stage again",
        ) from error


def champion_uri(root: Path | None = None) -> str:
    """URI of the only champion (see `versions.only_champion`)."""
    with connect(root) as client:
        return only_champion(client)
