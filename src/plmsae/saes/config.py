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
# Beyond these the numbers of a file are a mistake, and torch would not say so in words.
LARGEST, LARGEST_MATRIX = 2**31 - 1, 2**40
# Kind of normaliser -> its other keys. What each does: `plmsae.saes.normaliser`.
NORMALISERS: Mapping[str, tuple[str, ...]] = {
    "rms": ("scale", "folded"),
    "layer_norm": ("epsilon",),
    "token_rms": (),
}
_EXAMPLES = (
    '{"kind": "rms", "scale": a positive number, "folded": true or false}, {"kind": "layer_norm", "epsilon": 1e-5} '
    'or {"kind": "token_rms"}'
)


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
            of the biases and it takes raw activations x. Or `{"kind": "layer_norm", "epsilon": eps}` or
            `{"kind": "token_rms"}`: it takes raw activations and scales every token by itself (`normaliser.py`).
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
            valid = type(value) is int and least <= value <= LARGEST
            _require(valid, name, self, f"a whole number of at least {least} and at most {LARGEST}")
        if self.d_model * self.dictionary_size > LARGEST_MATRIX:
            raise UserError(
                f"a matrix of {self.dictionary_size} x {self.d_model} numbers is larger than any memory",
                where="dictionary_size, d_model",
                fix="correct the sizes",
            )
        for name in ("normaliser", "options", "training"):
            _require(isinstance(getattr(self, name), Mapping), name, self, "a mapping")
        if self.k > self.dictionary_size:
            raise UserError(
                f"k = {self.k} is larger than the dictionary of {self.dictionary_size} latents",
                where="k, dictionary_size",
                fix="lower k or enlarge the dictionary",
            )
        self._check_normaliser()

    @property
    def per_token(self) -> bool:
        """Whether every token is scaled by a number of its own, which a decoder alone cannot know."""
        return bool(self.normaliser["kind"] != "rms")

    @property
    def takes_raw(self) -> bool:
        """Whether the SAE takes activations as the protein language model gives them."""
        return self.per_token or bool(self.normaliser["folded"])

    @property
    def input(self) -> str:
        """What the SAE takes, in words."""
        if self.normaliser["kind"] == "layer_norm":
            return "raw activations (every token is standardised by its own mean and standard deviation)"
        if self.normaliser["kind"] == "token_rms":
            return "raw activations (every token is divided by its own root mean square)"
        if self.takes_raw:
            return "raw activations (the normaliser is folded into the biases)"
        return f"activations divided by {self.normaliser['scale']:.6g}"

    def _check_normaliser(self) -> None:
        kind = self.normaliser.get("kind")
        keys = NORMALISERS.get(kind) if isinstance(kind, str) else None
        if keys is None:
            raise UserError(
                f"normaliser kind {kind!r} is unknown",
                where="normaliser",
                fix=f"{did_you_mean(str(kind), NORMALISERS)} Write {_EXAMPLES}",
            )
        for key in self.normaliser:
            if key not in ("kind", *keys):
                raise UserError(
                    f"unknown key 'normaliser.{key}'", where="normaliser", fix=did_you_mean(str(key), ("kind", *keys))
                )
        numbers = [self.normaliser.get(key) for key in keys if key != "folded"]
        valid = all(_is_number(value) and float(value) > 0 for value in numbers if value is not None)
        if None in numbers or not valid or ("folded" in keys and not isinstance(self.normaliser.get("folded"), bool)):
            raise UserError(
                f"normaliser {dict(self.normaliser)} is not valid", where="normaliser", fix=f"write {_EXAMPLES}"
            )
        if kind == "layer_norm" and self.d_model < 2:
            raise UserError(
                "one entry has no standard deviation, so 'layer_norm' needs a d_model of at least 2",
                where="normaliser, d_model",
                fix="use another normaliser",
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
        except (ValueError, RecursionError) as error:
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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")
