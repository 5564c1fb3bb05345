"""Our own files, `sae.safetensors` and `config.json`: what an import ends in."""

from __future__ import annotations

from pathlib import Path

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.files import save


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`."""
    save(sae, folder)
