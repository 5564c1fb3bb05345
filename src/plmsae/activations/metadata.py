"""`store.json`: what an activation store holds and where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plmsae.activations.rows import SCALE_BYTES
from plmsae.artifacts.atomic import write_text
from plmsae.errors import DataError

METADATA = "store.json"
SCHEMA_VERSION = 1
StoreDtype = Literal["bfloat16", "float16", "float32", "int8"]
DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
}


def stored_width(d_model: int, dtype: str) -> int:
    """Values of a stored row: int8 has its scale behind it."""
    return d_model + (SCALE_BYTES if dtype == "int8" else 0)


class Normaliser(BaseModel):
    """How rows are scaled for training: x / scale, where scale = sqrt(mean ||x||^2) over the train rows.

    One scalar, so that it folds exactly into a trained dictionary (Gemma Scope, section 3.1; dictionary_learning).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["rms"] = "rms"
    scale: float = Field(gt=0)


class StoreMetadata(BaseModel):
    """Contents of `store.json`.

    Attributes:
        plm: Name of the protein language model.
        plm_revision: Its exact revision.
        layer: Layer index as in `plms.base.ProteinLM`.
        hook: Name of the hook.
        dtype: Stored type, see `rows`; what is stored is exact in fp32.
        d_model: Row width.
        block_rows: Rows of a block; the last block of each chunk group may be shorter.
        num_tokens: Split -> number of rows (residues).
        num_masked: Split -> number of residues that were left out as not finite (`masked.csv`); None if none was.
        normaliser: Scale of the train rows.
        sequences_sha256: sha256 of the `sequences.parquet` that was embedded.
        precision: Type of the model's matrix products; None for float32.
        location: `s3://bucket/prefix` below which the chunks are, or None if they are beside `store.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    plm: str
    plm_revision: str
    layer: int = Field(ge=0)
    hook: str
    dtype: StoreDtype
    d_model: int = Field(gt=0)
    block_rows: int = Field(gt=0)
    num_tokens: dict[str, int]
    num_masked: dict[str, int] | None = None
    normaliser: Normaliser
    sequences_sha256: str
    precision: str | None = None
    location: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the rows in memory: the stored one, or fp32 where int8 is stored."""
        return torch.float32 if self.dtype == "int8" else self.stored_dtype

    @property
    def stored_dtype(self) -> torch.dtype:
        """Type of what is stored."""
        return DTYPES[self.dtype]

    @property
    def width(self) -> int:
        """Values of a stored row, see `rows`."""
        return stored_width(self.d_model, self.dtype)


def write_metadata(folder: Path, metadata: StoreMetadata) -> None:
    """Write `store.json` into a store folder."""
    data = metadata.model_dump(mode="json", exclude_none=True)
    write_text(folder / METADATA, json.dumps(data, indent=1, sort_keys=True) + "\n")


def read_metadata(folder: Path) -> StoreMetadata:
    """Read `store.json` of a store folder.

    Raises:
        DataError: There is none, it is malformed, or it is of a newer schema.
    """
    path = folder / METADATA
    if not path.is_file():
        raise DataError(
            f"'{folder}' is not an activation store (no {METADATA})", fix="run: dvc repro extract_activations"
        )
    try:
        metadata = StoreMetadata.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, ValueError) as error:
        raise DataError("the store's description is not valid", where=str(path), fix="extract again") from error
    if metadata.schema_version > SCHEMA_VERSION:
        raise DataError(
            f"store schema {metadata.schema_version} is newer than this plmsae reads ({SCHEMA_VERSION})",
            where=str(path),
            fix="update plmsae",
        )
    return metadata
