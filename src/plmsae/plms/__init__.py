"""Protein language models behind one interface (`base.ProteinLM`). `load_plm` finds one by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.errors import UserError, did_you_mean
from plmsae.plms.families import HUB, family_of

if TYPE_CHECKING:
    from plmsae.plms.base import ProteinLM
    from plmsae.plms.checkpoint import Precision

BUNDLED = "esm_small"
KNOWN = (BUNDLED, *HUB)
_CACHE = Path(".plmsae") / "plms"


def load_plm(
    name: str,
    revision: str | None = None,
    *,
    root: Path = Path(),
    precision: Precision = "float32",
    device: str = "cpu",
) -> ProteinLM:
    """Load a protein language model.

    Args:
        name: `esm_small` (bundled with plmsae), a name of the hub in `KNOWN`, `s3://bucket/prefix`, or the path of a
            checkpoint folder (anything that exists as a folder or starts with `.`, `/` or `~`); any of them with
            `?permuted=SEED` or `?random=SEED` after it for a control, see `controls`.
        revision: For a hub name a branch, tag or commit hash (default: main); for others the `sha256:<hex>` that the
            weights must have. The loaded model's `revision` is always the exact one.
        root: Folder that a relative path starts from, and under which checkpoints from S3 are kept.
        precision: Type of the weights of linear layers and of the products with them; the rest is fp32.
        device: Where the model runs; what goes in and comes out is on the CPU.

    Raises:
        UserError: Unknown name, a checkpoint of no known family, or weights of another revision.
        DataError: Corrupted or incomplete files.
        TryAgainError: The hub or the store cannot be reached.
    """
    from plmsae.plms.checkpoint import Checkpoint, read_config
    from plmsae.plms.controls import split_name

    base, control = (name, None) if (root / name).is_dir() else split_name(name)
    weights = control is None or control.needs_weights
    commit = None
    if base in HUB:
        from plmsae.plms.hub import download

        folder, commit = download(base, revision, HUB[base], weights=weights)
    elif base.startswith("s3://"):
        from plmsae.plms import bucket

        folder = bucket.download(base, root / _CACHE, weights=weights)
    else:
        folder = _local_folder(base, root)
    family = family_of(read_config(folder), folder)
    with Checkpoint(
        folder, pickled=family.pickled, names=family.names, control=control, precision=precision, device=device
    ) as checkpoint:
        found = commit or checkpoint.revision()
        if commit is None and revision is not None and found != revision:
            raise UserError(
                f"'{name}' has revision {found}, not {revision}",
                fix="use the weights that the revision names, or drop plm_revision",
            )
        return family.build()(name, checkpoint, found)


def _local_folder(name: str, root: Path) -> Path:
    if name == BUNDLED:
        return Path(__file__).parent / "small"
    folder = root / Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.startswith((".", "~", os.sep)):
        raise UserError(f"PLM folder '{name}' does not exist", fix="correct the path")
    raise UserError(f"unknown PLM '{name}'", fix=f"{did_you_mean(name, KNOWN)} A local folder works too.")
