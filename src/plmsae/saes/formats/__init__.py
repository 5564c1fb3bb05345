"""SAEs of other libraries: reading them as ours and writing ours as theirs. Needs torch and safetensors alone.

`plmsae` is our own format: an imported SAE ends in it, and `load_folder` reads it.

A reader gives the same latents and reconstructions as the other library's forward, up to fp32 rounding, or refuses and
says why. To add a format, write one module with `read` and `write` and add its line to `_FORMATS`.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from plmsae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from plmsae.saes.base import SparseAutoencoder

__all__ = ["export_formats", "export_sae", "import_formats", "import_sae"]

# name -> (module, whether it is read, whether it is written)
_FORMATS: dict[str, tuple[str, bool, bool]] = {
    "biohub": ("plmsae.saes.formats.biohub", True, True),
    "dictionary_learning": ("plmsae.saes.formats.dictionary_learning", True, True),
    "interplm": ("plmsae.saes.formats.interplm", True, True),
    "interprot": ("plmsae.saes.formats.interprot", True, True),
    "openai": ("plmsae.saes.formats.openai", True, True),
    "plmsae": ("plmsae.saes.formats.own", False, True),
    "reticular": ("plmsae.saes.formats.dictionary_learning", True, False),
    "saelens": ("plmsae.saes.formats.saelens", True, True),
    "sparsify": ("plmsae.saes.formats.sparsify", True, True),
}


def import_formats() -> tuple[str, ...]:
    """Names of the formats that `import_sae` reads."""
    return tuple(name for name in sorted(_FORMATS) if _FORMATS[name][1])


def export_formats() -> tuple[str, ...]:
    """Names of the formats that `export_sae` writes."""
    return tuple(name for name in sorted(_FORMATS) if _FORMATS[name][2])


def import_sae(
    folder: Path,
    format: str,
    *,
    plm: str,
    plm_revision: str,
    layer: int,
    hook: str,
    normaliser: Mapping[str, Any] | None = None,
    dictionary_class: str | None = None,
    k: int | None = None,
) -> SparseAutoencoder:
    """Read an SAE of another library, on the CPU and with gradients off.

    The other libraries' files do not say what an SAE was trained on, or say it in names that do not compare, so the
    caller says it; `check_source` holds all activations against that later.

    Args:
        folder: The folder as the other library wrote it.
        format: One of `import_formats()`.
        plm: Protein language model whose activations it was trained on.
        plm_revision: Revision of that model.
        layer: Layer of the activations, as an index into the hidden states (0: embeddings).
        hook: Where in the layer, e.g. `residual`.
        normaliser: `{"kind": "rms", "scale": c, "folded": bool}`: it was trained on x / c, and c is part of its biases
            or not; raw activations are c = 1, folded. None only where the files say it (`saelens`), or where the
            library scales every token by itself (`interprot`, `biohub`, `openai` TopK, InterPLM's
            `normalize_to_sqrt_d`).
        dictionary_class: The other library's class, where the files do not say it.
        k: Latents per token, where the files do not say it (`interprot`).

    Returns:
        The SAE; `.folded(scale)` makes one for raw activations where the normaliser is not folded.

    Raises:
        UserError: Unknown format, no such folder, an origin that is not told, or an SAE that no architecture here is.
        DataError: A file is missing, not safe to load, or malformed; the tensor or key is named.
    """
    from plmsae.saes.formats.origin import Origin

    module = _module(format, import_formats())
    if not folder.is_dir():
        raise UserError(f"no folder '{folder}'", fix="pass the folder that the other library wrote")
    sae: SparseAutoencoder = module.read(
        folder, Origin(format, plm, plm_revision, layer, hook, normaliser, dictionary_class, k)
    )
    return sae


def export_sae(sae: SparseAutoencoder, folder: Path, format: str) -> None:
    """Write an SAE for another library; the folder appears whole or not at all, and equal SAEs give equal bytes.

    What only a training needs (penalties, AuxK) is not written.

    Args:
        sae: One that takes raw activations: its normaliser is folded, or works per token.
        folder: Must not exist, or be empty.
        format: One of `export_formats()`.

    Raises:
        UserError: Unknown format, the folder is not empty, the SAE is not folded, or the format has no class that
            computes what this architecture computes.
        DataError: A tensor holds NaN or infinity, or the SAE is not finished.
    """
    from plmsae.saes.formats.ours import check_exportable

    module = _module(format, export_formats())
    check_exportable(sae)
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' exists already", fix="remove it, or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        module.write(sae, temporary)
        if folder.is_dir():
            folder.rmdir()
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _module(format: str, known: tuple[str, ...]) -> ModuleType:
    if format not in known:
        raise UserError(f"unknown SAE format '{format}'", where="format", fix=did_you_mean(format, known))
    return import_module(_FORMATS[format][0])
