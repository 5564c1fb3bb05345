"""Our side of an export: which tensors an SAE has, and whether it may leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder

THRESHOLDED = ("batch_topk", "matryoshka")
# What InterProt, Biohub, OpenAI and SAELens (`layer_norm`) do to every token.
LAYER_NORM: Mapping[str, Any] = {"kind": "layer_norm", "epsilon": 1e-5}


def check_exportable(sae: SparseAutoencoder) -> None:
    """Refuse an SAE that would come out wrong.

    Raises:
        UserError: It takes scaled activations: the other formats have no place for the scale.
        DataError: A tensor holds NaN or infinity, or the SAE is not finished.
    """
    if not sae.config.takes_raw:
        raise UserError(
            f"the SAE takes {sae.config.input}, not raw ones",
            where="normaliser",
            fix="fold it first: sae.folded(scale)",
        )
    for name, tensor in sae.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"tensor '{name}' holds NaN or infinity", where=name, fix="do not export a diverged SAE")
    if problem := sae.weights_problem():
        raise DataError(problem, fix="finish the SAE before it is exported")


def check_normaliser(sae: SparseAutoencoder, format: str, *known: Mapping[str, Any]) -> None:
    """Refuse an SAE whose normaliser works per token in a way that the format's library does not.

    Args:
        sae: The SAE.
        format: Name of the format.
        known: What the library does token by token.

    Raises:
        UserError: It does something else.
    """
    if sae.config.per_token and dict(sae.config.normaliser) not in [dict(item) for item in known]:
        raise UserError(
            f"an SAE with the normaliser {dict(sae.config.normaliser)} cannot be written as {format}: that library "
            + ("only knows " + " and ".join(str(dict(item)) for item in known) if known else "scales no token"),
            where="format",
            fix="keep sae.safetensors and config.json, or choose another format",
        )


def require_layer_norm(sae: SparseAutoencoder, format: str) -> None:
    """Refuse an SAE that does not standardise every token as this format's library always does.

    Raises:
        UserError: It does something else.
    """
    check_normaliser(sae, format, LAYER_NORM)
    if not sae.config.per_token:
        raise UserError(
            f"an SAE that takes {sae.config.input} cannot be written as {format}: that library standardises tokens",
            where="format",
            fix="choose another format",
        )


def parts(sae: SparseAutoencoder) -> tuple[str, dict[str, Tensor]]:
    """Architecture and tensors (fp32, on the CPU, under our names) of an SAE.

    The baseline `random` is the `topk` that it computes.
    """
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)
        for name, tensor in sae.state_dict().items()
    }
    if sae.config.architecture == "random":
        encoder = {"W_enc": tensors["W_dec"].clone(), "b_enc": torch.zeros(sae.config.dictionary_size)}
        return "topk", {**tensors, **encoder}
    return sae.config.architecture, tensors


def cannot(sae: SparseAutoencoder, format: str, reason: str) -> UserError:
    """The error for an architecture that a format cannot express."""
    return UserError(
        f"an SAE of architecture '{sae.config.architecture}' cannot be written as {format}: {reason}",
        where="format",
        fix="keep sae.safetensors and config.json, or choose another format",
    )


def transposed(tensor: Tensor) -> Tensor:
    """[a, b] -> [b, a], contiguous."""
    return tensor.t().contiguous()
