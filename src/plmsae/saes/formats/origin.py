"""What an imported SAE was trained on, as its user says, and building it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.saes import sae_class
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.formats.tensors import sha256


@dataclass(frozen=True)
class Origin:
    """The arguments of `import_sae` beside the folder; see there."""

    format: str
    plm: str
    plm_revision: str
    layer: int
    hook: str
    normaliser: Mapping[str, Any] | None
    dictionary_class: str | None
    k: int | None = None

    def latents_per_token(self, stated: int | None, n: int, where: Path) -> int:
        """k: what the files state, or else what the user says.

        Args:
            stated: What the files say; None where they do not.
            n: Number of latents.
            where: The file, for messages.

        Raises:
            UserError: Neither says it, both do and differ, or it is not in 1..n.
        """
        k = self.k if stated is None else stated
        if k is None:
            raise UserError(
                "the files do not say how many latents are active on a token",
                where=str(where),
                fix="pass k (on the command line: --k), e.g. 64",
            )
        if self.k not in (None, k):
            raise UserError(f"the files say k = {k}, not {self.k}", where=str(where), fix="leave k away")
        if type(k) is not int or not 1 <= k <= n:
            raise UserError(f"k = {k!r} is not in 1..{n}", where=str(where), fix="pass the k of its training")
        return k

    def one_of(self, stated: str | None, known: tuple[str, ...], where: Path) -> str:
        """The class of the SAE: what the files state, or else what the user says.

        Raises:
            UserError: Neither says it, both do and differ, or it is none of `known`.
        """
        name = stated or self.dictionary_class
        if name is None:
            raise UserError(
                "the files do not say which class the SAE is of",
                where=str(where),
                fix="pass dictionary_class (on the command line: --class): " + ", ".join(f"'{item}'" for item in known),
            )
        if stated and self.dictionary_class not in (None, stated):
            raise UserError(
                f"the files hold a '{stated}', not a '{self.dictionary_class}'",
                where=str(where),
                fix="leave dictionary_class away",
            )
        if name not in known:
            raise UserError(f"SAE class '{name}' cannot be imported", where=str(where), fix=did_you_mean(name, known))
        return name

    def build(
        self,
        architecture: str,
        tensors: Mapping[str, Tensor],
        *,
        source: Path,
        stated: str,
        k: int | None = None,
        options: Mapping[str, Any] | None = None,
        normaliser: Mapping[str, Any] | None = None,
    ) -> SparseAutoencoder:
        """The SAE of our architecture with these tensors.

        Args:
            architecture: One of `architectures()`.
            tensors: Its state under our names, fp32; `latent_max` may be missing.
            source: The file that the tensors are from.
            stated: Class or architecture in the other library's words, for the record.
            k: Latents per token; None where the architecture sets no number.
            options: `SaeConfig.options`.
            normaliser: What the files say of it.

        Raises:
            UserError: The origin is not told, or not valid.
            DataError: The tensors cannot be those of a finished SAE.
        """
        n, d = tensors["W_dec"].shape
        if self.k is not None and k is None:
            raise UserError(f"a '{stated}' has any number of active latents", where=str(source), fix="leave k away")
        if k is not None:
            self.latents_per_token(k, n, source)
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise DataError(f"tensor '{name}' is {tensor.dtype}", where=str(source), fix="save it as fp32")
        given = self.normaliser if self.normaliser is not None else normaliser
        if given is None:
            raise UserError(
                f"the files of format '{self.format}' do not say how the activations were scaled before the training",
                where="normaliser",
                fix='pass {"kind": "rms", "scale": the norm factor, "folded": false} (on the command line: --scale) if '
                'it takes activations divided by the factor, {"kind": "rms", "scale": 1.0, "folded": true} (--scale 1 '
                "--folded) if it was trained on raw ones",
            )
        if normaliser is not None and not _agree(given, normaliser):
            raise UserError(
                f"the files say that the normaliser is {dict(normaliser)}, not {dict(given)}",
                where="normaliser",
                fix="leave it away",
            )
        record = {"format": self.format, "class": stated, "weights_sha256": sha256(source)}
        config = SaeConfig(
            architecture=architecture,
            d_model=d,
            dictionary_size=n,
            k=n if k is None else k,
            plm=self.plm,
            plm_revision=self.plm_revision,
            layer=self.layer,
            hook=self.hook,
            normaliser=dict(given),
            options=dict(options or {}),
            training={"imported": record},
        )
        with torch.device("meta"):
            sae = sae_class(architecture)(config)
        sae.load_state_dict({"latent_max": torch.zeros(n), **tensors}, strict=True, assign=True)
        if problem := sae.weights_problem():
            raise DataError(problem, where=str(source), fix="import a checkpoint of a finished training")
        return sae.requires_grad_(False).eval()


def _agree(told: Mapping[str, Any], stated: Mapping[str, Any]) -> bool:
    """Whether both take the same activations. Where they are raw, only the user knows which scale was folded in."""
    if told.get("kind") != "rms" or stated["kind"] != "rms":
        return dict(told) == dict(stated)
    if told.get("folded") != stated["folded"]:
        return False
    return bool(stated["folded"]) or math.isclose(float(told.get("scale", 0.0)), stated["scale"], rel_tol=1e-6)


def moved_bias(W_enc: Tensor, b_dec: Tensor) -> Tensor:
    """W_enc b_dec [n] in fp64: what an encoder's bias loses when b_dec is taken off before the encoder, or gains."""
    return W_enc.double() @ b_dec.double()
