"""What an extraction consists of: its settings, and the proteins of every part.

A part is a random share of the proteins of a split. It is computed, written and resumed on its own, on whichever
machine, and the parts of a split in order are its store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from plmsae.activations.metadata import StoreDtype
from plmsae.activations.non_finite import Policy
from plmsae.errors import DataError
from plmsae.plms.base import Place

SPLITS = ("train", "valid")  # test proteins are embedded when they are evaluated, never stored


@dataclass(frozen=True)
class Settings:
    """What determines the bytes of a store, beside the model and the sequences.

    Attributes:
        layer: Layer index as in `ProteinLM`.
        hook: Name of the hook.
        dtype: Type to store.
        block_rows: Rows of a block, the unit of reading.
        max_tokens_per_batch: Tokens that go through the model at once.
        shuffle_pool_rows: Rows that are shuffled together, about: the size of a part.
        seed: Seed of the shuffling.
        non_finite: What to do with rows that are not finite in the stored type: `refuse`, or `mask` (leave them out).
        precision: Type in which the model computes its matrix products.
    """

    layer: int
    hook: str = "residual"
    dtype: StoreDtype = "bfloat16"
    block_rows: int = 2048
    max_tokens_per_batch: int = 4096
    shuffle_pool_rows: int = 262_144
    seed: int = 0
    non_finite: Policy = "refuse"
    precision: str = "float32"

    @property
    def place(self) -> Place:
        """Layer and hook."""
        return Place(self.layer, self.hook)

    def at(self, place: Place) -> Settings:
        """The same settings for another place."""
        return replace(self, layer=place.layer, hook=place.hook)

    def described(self) -> dict[str, Any]:
        """What names the bytes; without younger settings at their defaults, so that older stores keep their names."""
        younger = (("non_finite", "refuse"), ("precision", "float32"))
        return {name: value for name, value in vars(self).items() if (name, value) not in younger}


@dataclass(frozen=True)
class Part:
    """Proteins that are shuffled together.

    Attributes:
        split: `train` or `valid`.
        number: 0-based within the split.
        accessions: Their accessions.
        sequences: Their sequences.
        offsets: 0-based position in the protein at which each starts.
        shuffle_seed: Seeds the order of the rows.
    """

    split: str
    number: int
    accessions: tuple[str, ...]
    sequences: tuple[str, ...]
    offsets: tuple[int, ...]
    shuffle_seed: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.split}-{self.number:05d}"

    @property
    def num_rows(self) -> int:
        """Number of residues."""
        return sum(len(sequence) for sequence in self.sequences)


def plan_parts(sequences: pd.DataFrame, split: str, settings: Settings) -> list[Part]:
    """Deal the proteins of a split to parts of about equal numbers of residues, at random but reproducibly.

    Args:
        sequences: Columns accession, sequence, split, and offset if it is not 0.
        split: The split.
        settings: `shuffle_pool_rows` bounds a part (but for the last protein in it); `seed` draws.

    Raises:
        DataError: The split has no proteins.
    """
    table = sequences[sequences["split"] == split]
    if table.empty:
        raise DataError(
            f"no sequences in split '{split}'",
            where="sequences.parquet",
            fix="ingest more sequences, or give the split a larger share in the ingest parameters",
        )
    seed = (settings.seed, SPLITS.index(split))
    table = table.iloc[np.random.default_rng([*seed, 0]).permutation(len(table))]
    if "offset" not in table:
        table = table.assign(offset=0)
    ends = table["sequence"].str.len().to_numpy().cumsum()
    num_parts = -(-int(ends[-1]) // settings.shuffle_pool_rows)
    # The part in which the last residue of each protein falls, when residues are cut into equal shares.
    number = (ends - 1) * num_parts // ends[-1]
    return [
        Part(
            split=split,
            number=i,
            accessions=tuple(group["accession"]),
            sequences=tuple(group["sequence"]),
            offsets=tuple(group["offset"].tolist()),
            shuffle_seed=(*seed, i + 1),
        )
        for i, (_, group) in enumerate(table.groupby(number, sort=True))
    ]
