"""What is done to activations before the encoder, and undone after the decoder.

    rms         x / c: one number for all tokens, which folds into the biases (`SparseAutoencoder.folded`)
    layer_norm  (x - mu) / (sigma + eps), undone as sigma x^ + mu: mu and sigma are the mean and the unbiased standard
                deviation over the d entries of the token itself. InterProt, Biohub's ESM C SAEs, SAELens `layer_norm`
                and OpenAI's TopK (Gao et al. 2024) do this, with eps = 1e-5, which undoing leaves out as they do
    token_rms   x / r, undone as r x^: r = ||x|| / sqrt(d), the root mean square of the token itself. InterPLM
                `normalize_to_sqrt_d` and SAELens `constant_norm_rescale`

The last two need the token to undo them: latents alone do not hold its scale. A token of zeros (and for `layer_norm`
one whose entries are all the same) becomes zeros, and its reconstruction is the token itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardised:
    """Activations as the encoder takes them, and how to come back.

    Attributes:
        rows: [..., d], what the encoder takes.
        scale: [..., 1], what one unit of the decoder's output is in the activations of that token; None where that
            is 1 for every token.
        offset: [..., 1], what is added after scaling; None where that is 0.
    """

    rows: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None

    def undo(self, x_hat: Tensor) -> Tensor:
        """The decoder's output [..., d] in the space of the activations."""
        if self.scale is not None:
            x_hat = x_hat * self.scale
        return x_hat if self.offset is None else x_hat + self.offset


def standardise(x: Tensor, normaliser: Mapping[str, Any]) -> Standardised:
    """Do what `normaliser` says to every token of x [..., d]; `rms` is not done here and leaves x as it is.

    An SAE with an `rms` normaliser takes x / c, or raw activations once folded: both are its input.
    """
    kind = normaliser["kind"]
    if kind == "layer_norm":
        mean = x.mean(dim=-1, keepdim=True, dtype=torch.float64).to(x.dtype)
        centered = x - mean
        deviation = _norm(centered) / math.sqrt(x.shape[-1] - 1)
        return Standardised(centered / (deviation + normaliser["epsilon"]), deviation, mean)
    if kind == "token_rms":
        scale = _norm(x) / math.sqrt(x.shape[-1])
        return Standardised(x / torch.where(scale > 0, scale, 1.0), scale)
    return Standardised(x)


def _norm(x: Tensor) -> Tensor:
    """||x|| of every token, [..., 1]; summed in fp64, where squares of large fp32 numbers do not overflow."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
    return norm.to(x.dtype)
