"""Our side of an export: which tensors an SAE has, and whether it may leave."""

from __future__ import annotations

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder

THRESHOLDED = ("batch_topk", "matryoshka")


def check_exportable(sae: SparseAutoencoder) -> None:
    """Refuse an SAE that would come out wrong.

    Raises:
        UserError: It is not folded: no other format has a place for our normaliser.
        DataError: A tensor holds NaN or infinity, or the SAE is not finished.
    """
    if not sae.config.normaliser["folded"]:
        raise UserError(
            f"the SAE takes activations divided by {sae.config.normaliser['scale']:.6g}, which the file could not say",
            where="normaliser",
            fix="fold it first: sae.folded(scale)",
        )
    for name, tensor in sae.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"tensor '{name}' holds NaN or infinity", where=name, fix="do not export a diverged SAE")
    if problem := sae.weights_problem():
        raise DataError(problem, fix="finish the SAE before it is exported")


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
