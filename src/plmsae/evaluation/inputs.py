"""What an evaluation reads, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from plmsae.activations.metadata import read_metadata
from plmsae.activations.places import store_at
from plmsae.errors import DataError
from plmsae.plms import load_plm
from plmsae.plms.base import ProteinLM
from plmsae.proteins.tables import read_annotations, read_sequences
from plmsae.saes import load_folder
from plmsae.saes.base import SparseAutoencoder


@dataclass(frozen=True)
class Proteins:
    """Proteins with their split and annotations.

    Attributes:
        sequences: Output folder of `ingest`.
    """

    sequences: Path

    def split(self, name: str, max_proteins: int | None, seed: int) -> pd.DataFrame:
        """Rows of `sequences.parquet` of one split, sorted by accession and offset.

        Args:
            name: `train`, `valid` or `test`.
            max_proteins: Keep a seeded random subset of this many proteins; None keeps all.
            seed: Seed; the subset is a function of it and of the accessions alone.

        Raises:
            DataError: The split is empty.
        """
        table = read_sequences(self.sequences)
        table = table[table["split"] == name].sort_values(["accession", "offset"])
        accessions = np.unique(table["accession"].to_numpy(dtype=str))
        if len(accessions) == 0:
            raise DataError(
                f"the {name} split has no protein",
                where=str(self.sequences / "sequences.parquet"),
                fix=f"raise ingest.{name}_fraction, or take more proteins",
            )
        if max_proteins is not None and max_proteins < len(accessions):
            kept = np.random.default_rng(seed).permutation(accessions)[:max_proteins]
            table = table[table["accession"].isin(kept)]
        return table.reset_index(drop=True)

    def annotations(self) -> pd.DataFrame:
        """The annotations of all proteins."""
        return read_annotations(self.sequences)


@dataclass(frozen=True)
class Inputs(Proteins):
    """Proteins with their split, the SAE, the model it belongs to, and what the store knows of the activations.

    Attributes:
        sequences: Output folder of `ingest`.
        plm: The model.
        sae: The SAE; checked to belong to the model, and to layer and hook of the store.
        mean: [d_model] mean activation of the training proteins, fp32.
        store: Folder of the store that the SAE belongs to.
    """

    plm: ProteinLM
    sae: SparseAutoencoder
    mean: Tensor
    store: Path

    @classmethod
    def load(cls, sequences: Path, activations: Path, sae: Path, *, root: Path, plm: ProteinLM | None = None) -> Inputs:
        """Load the SAE and the model that it was trained on.

        Args:
            sequences: Output folder of `ingest`.
            activations: Output folder of `extract_activations`.
            sae: Output folder of `train_sae`.
            root: The working folder, which a relative path of a local PLM starts from.
            plm: The model, if it is loaded already.

        Raises:
            UserError: The SAE was trained on another PLM, revision, layer or hook than the store is of, or its
                normaliser is not folded.
            DataError: A corrupted file.
            TryAgainError: The model's hub cannot be reached.
        """
        model = load_folder(sae / "sae")
        folder = store_at(activations, model.config.layer, model.config.hook)
        store = read_metadata(folder)
        model.check_source(store.plm, store.plm_revision, store.layer, store.hook)
        plm = plm or load_plm(store.plm, store.plm_revision, root=root)
        model.check_source(plm.name, plm.revision, store.layer, store.hook)
        plm.check_hook(store.layer, store.hook)
        return cls(sequences, plm, model.eval(), _mean(folder / "statistics.safetensors", plm.d_model), folder)


def _mean(path: Path, d_model: int) -> Tensor:
    try:
        mean: Tensor = load_file(path)["mean"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise DataError(
            "the mean activation cannot be read", where=str(path), fix="extract again: dvc repro extract_activations"
        ) from error
    if mean.shape != (d_model,) or not bool(mean.isfinite().all()):
        raise DataError(
            f"the mean activation of shape {list(mean.shape)} does not fit the model",
            where=str(path),
            fix="extract again: dvc repro extract_activations",
        )
    return mean


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    Attributes:
        metrics: Flat snake_case name -> finite number.
        summary: One paragraph of Markdown for people.
    """

    metrics: Mapping[str, float | int]
    summary: str
