"""What steering reads: the model, the SAE that belongs to it, and the residues to edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.activations.metadata import read_metadata
from plmsae.activations.places import store_at
from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import SEQUENCES_FILE, read_sequences
from plmsae.saes import load_folder
from plmsae.saes.base import SparseAutoencoder


@dataclass(frozen=True)
class Source:
    """The model and the SAE, checked to belong together."""

    plm: ProteinLM
    sae: SparseAutoencoder


def load_source(activations: Path | None, sae: Path, *, root: Path) -> Source:
    """Load the SAE and the model that it was trained on.

    Args:
        activations: Output folder of `extract_activations`, which the SAE must belong to; None goes by the SAE alone.
        sae: Output folder of `train_sae`.
        root: The working folder, which a relative path of a local PLM starts from.

    Raises:
        UserError: The SAE was trained on another PLM, revision, layer or hook than the store is of, or its normaliser
            is not folded.
        DataError: A corrupted file.
        TryAgainError: The model's hub cannot be reached.
    """
    model = load_folder(sae / "sae")
    config = model.config
    if activations is not None:
        store = read_metadata(store_at(activations, config.layer, config.hook))
        model.check_source(store.plm, store.plm_revision, store.layer, store.hook)
    plm = load_plm(config.plm, config.plm_revision, root=root)
    model.check_source(plm.name, plm.revision, config.layer, config.hook)
    plm.check_hook(config.layer, config.hook)
    return Source(plm, model.eval())


def chosen_rows(
    sequences: Path,
    *,
    accessions: Sequence[str],
    split: str,
    max_proteins: int | None,
    first_residue: int | None,
    last_residue: int | None,
    seed: int,
) -> pd.DataFrame:
    """Rows of `sequences.parquet` with at least one residue to edit, sorted by accession and offset.

    Args:
        sequences: Output folder of `ingest`.
        accessions: The proteins; empty takes a seeded random subset of a split.
        split: `train`, `valid` or `test`; not looked at with `accessions`.
        max_proteins: Size of the subset; None takes all.
        first_residue: 1-based UniProt position of the first residue to edit; None starts at the first.
        last_residue: The last one, included; None goes to the end.
        seed: Seed of the subset, which is a function of it and of the accessions alone.

    Returns:
        The table with the columns `edit_start` and `edit_end` added: 0-based half-open within the row's sequence.

    Raises:
        UserError: An accession that is not there, or a range that no protein reaches.
        DataError: The split is empty.
    """
    table = read_sequences(sequences).sort_values(["accession", "offset"])
    if accessions:
        known = set(table["accession"])
        for accession in accessions:
            if accession not in known:
                raise UserError(
                    f"protein '{accession}' is not in the output of ingest",
                    where="steer.accessions",
                    fix=f"{did_you_mean(accession, known)}" if len(known) < 20 else "name proteins that ingest kept",
                )
        table = table[table["accession"].isin(set(accessions))]
    else:
        table = table[table["split"] == split]
        if table.empty:
            raise DataError(
                f"the {split} split has no protein", where=str(sequences / SEQUENCES_FILE), fix="choose another split"
            )
    start = np.clip((first_residue or 1) - 1 - table["offset"], 0, table["length"])
    end = table["length"] if last_residue is None else np.clip(last_residue - table["offset"], 0, table["length"])
    table = table.assign(edit_start=start, edit_end=end)
    table = table[table["edit_start"] < table["edit_end"]]
    if table.empty:
        raise UserError(
            f"no chosen protein has a residue {first_residue}", where="steer.first_residue", fix="choose an earlier one"
        )
    names = np.unique(table["accession"].to_numpy(dtype=str))
    if not accessions and max_proteins is not None and max_proteins < len(names):
        kept = np.random.default_rng(seed).permutation(names)[:max_proteins]
        table = table[table["accession"].isin(set(kept))]
    return table.reset_index(drop=True)
