"""The configuration of a sparse autoencoder: what it is and what it was trained on. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plmsae.errors import DataError, UserError, did_you_mean

SCHEMA_VERSION = 1
NORMALISER_KEYS = ("kind", "scale", "folded")


@dataclass(frozen=True)
class SaeConfig:
    """Everything about an SAE that its tensors do not say; written as `config.json`.

    Attributes:
        architecture: A name in `plmsae.saes.architectures()`.
        d_model: Width of the activations it reads.
        dictionary_size: Number of latents, n.
        k: Latents that fire on one token: the most of them (`topk`), or their mean over tokens (`batch_topk`,
            `matryoshka`); n where the architecture sets no number.
        plm: Protein language model whose activations it was trained on.
        plm_revision: Revision of that model.
        layer: Layer of the activations (DESIGN: index into hidden states).
        hook: Where in the layer, e.g. `residual`.
        normaliser: `{"kind": "rms", "scale": c, "folded": bool}`: it was trained on x / c; when folded, c is part
            of the biases and it takes raw activations x.
        options: What this architecture alone knows, e.g. `aux_k` of `topk`; absent keys mean its defaults.
        training: Record of the training: steps, tokens, seed, kernel, threads, sha256 of the data.
        schema_version: Version of this format.

    Raises:
        UserError: A field is of the wrong type or out of range, or fields contradict each other.
    """

    architecture: str
    d_model: int
    dictionary_size: int
    k: int
    plm: str
    plm_revision: str
    layer: int
    hook: str
    normaliser: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("architecture", "plm", "plm_revision", "hook"):
            _require(isinstance(getattr(self, name), str) and getattr(self, name), name, self, "a non-empty text")
        for name, least in (("d_model", 1), ("dictionary_size", 1), ("k", 1), ("layer", 0), ("schema_version", 1)):
            value = getattr(self, name)
            _require(type(value) is int and value >= least, name, self, f"a whole number of at least {least}")
        for name in ("normaliser", "options", "training"):
            _require(isinstance(getattr(self, name), Mapping), name, self, "a mapping")
        if self.k > self.dictionary_size:
            raise UserError(
                f"k = {self.k} is larger than the dictionary of {self.dictionary_size} latents",
                where="k, dictionary_size",
                fix="lower k or enlarge the dictionary",
            )
        self._check_normaliser()

    def _check_normaliser(self) -> None:
        unknown = [key for key in self.normaliser if key not in NORMALISER_KEYS]
        if unknown:
            raise UserError(
                f"unknown key 'normaliser.{unknown[0]}'", fix=did_you_mean(str(unknown[0]), NORMALISER_KEYS)
            )
        scale, folded = self.normaliser.get("scale"), self.normaliser.get("folded")
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
        valid = number and math.isfinite(float(scale or 0)) and float(scale or 0) > 0 and isinstance(folded, bool)
        if self.normaliser.get("kind") != "rms" or not valid:
            raise UserError(
                f"normaliser {dict(self.normaliser)} is not valid",
                where="normaliser",
                fix='write {"kind": "rms", "scale": a positive number, "folded": true or false}',
            )

    def replace(self, **changes: Any) -> SaeConfig:
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Indented JSON with sorted keys; equal configurations give equal text."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        data |= {name: dict(data[name]) for name in ("normaliser", "options", "training")}
        return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> SaeConfig:
        """Read a stored configuration.

        Args:
            text: Contents of `config.json`.
            where: Its path, for messages.

        Raises:
            DataError: Not JSON, an unknown or missing key, a newer schema, or a value that is not valid.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", where=where, fix=RESTORE) from error
        if not isinstance(data, dict):
            raise DataError("the configuration is not a mapping", where=where, fix=RESTORE)
        version = data.get("schema_version")
        if type(version) is int and version > SCHEMA_VERSION:
            raise DataError(
                f"SAE format {version} is newer than this plmsae reads ({SCHEMA_VERSION})",
                where=where,
                fix="update plmsae",
            )
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                raise DataError(f"unknown key '{key}'", where=where, fix=did_you_mean(key, fields))
        for name in fields:
            if name not in data:
                raise DataError(f"key '{name}' is missing", where=where, fix=RESTORE)
        try:
            return cls(**data)
        except UserError as error:
            raise DataError(error.problem, where=f"{where} ({error.where})", fix=error.fix) from error


RESTORE = "restore the file with `dvc checkout`, pull the model again, or run: dvc repro train_sae"


def _require(valid: object, name: str, config: SaeConfig, wanted: str) -> None:
    if not valid:
        raise UserError(
            f"'{name}' of the SAE configuration is {getattr(config, name)!r}", where=name, fix=f"write {wanted}"
        )


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")
