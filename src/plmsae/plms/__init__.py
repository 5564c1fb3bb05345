"""Protein language models behind one interface (`base.ProteinLM`). `load_plm` finds one by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from plmsae.plms.base import ProteinLM

BUNDLED = "esm_small"
_HUB = (
    "facebook/esm2_t6_8M_UR50D",
    "facebook/esm2_t12_35M_UR50D",
    "facebook/esm2_t30_150M_UR50D",
    "facebook/esm2_t33_650M_UR50D",
    "facebook/esm2_t36_3B_UR50D",
    "facebook/esm2_t48_15B_UR50D",
)
KNOWN = (BUNDLED, *_HUB)


def load_plm(name: str, revision: str | None = None, *, root: Path = Path()) -> ProteinLM:
    """Load a protein language model.

    Args:
        name: `esm_small` (bundled with plmsae), a `facebook/esm2_*` name, or the path of a checkpoint folder
            (anything that exists as a folder or starts with `.`, `/` or `~`).
        revision: For a hub name a branch, tag or commit hash (default: main); for others the `sha256:<hex>` that the
            weights must have. The loaded model's `revision` is always the exact one.
        root: Folder that a relative path starts from.

    Raises:
        UserError: Unknown name, not an ESM-2 checkpoint, or weights of another revision.
        DataError: Corrupted or incomplete files.
        TryAgainError: The hub cannot be reached.
    """
    from plmsae.plms.esm2 import Esm2

    if name in _HUB:
        from plmsae.plms.hub import download

        folder, commit = download(name, revision)
        return Esm2(name, folder, commit)
    plm = Esm2(name, _local_folder(name, root))
    if revision is not None and plm.revision != revision:
        raise UserError(
            f"'{name}' has revision {plm.revision}, not {revision}",
            fix="use the weights that the revision names, or drop plm_revision",
        )
    return plm


def _local_folder(name: str, root: Path) -> Path:
    if name == BUNDLED:
        return Path(__file__).parent / "small"
    folder = root / Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "~", os.sep)):
        raise UserError(f"PLM folder '{name}' does not exist", fix="correct the path")
    raise UserError(f"unknown PLM '{name}'", fix=f"{did_you_mean(name, KNOWN)} A local folder works too.")
