"""Sets of units that are scored against concepts: the SAE's latents and the baselines, all through the same door.

Any `SparseAutoencoder` with measured maxima is such a set; a baseline is one more architecture in `saes/`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from plmsae.activations.blocks import BlockStore
from plmsae.errors import DataError
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.residue_labels import Sparse
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder

ROWS_AT_ONCE = 16_384
# Architectures whose latents come in pairs, the positive and the negative part of one coordinate.
_SIGNED = {"neurons": "neuron", "pca": "component", "ica": "component"}


@dataclass(frozen=True)
class Units:
    """Units of a method, normalised by their largest activation on the reference set (InterPLM's normalisation).

    Attributes:
        method: Name of the method, e.g. `sae`.
        sae: Its units; `latent_max` is measured.
    """

    method: str
    sae: SparseAutoencoder

    def __post_init__(self) -> None:
        if not bool((self.sae.latent_max > 0).any()):
            raise DataError(
                f"the largest activations of '{self.method}' are not known",
                where="latent_max",
                fix="train the SAE with train_sae, which measures them",
            )

    @property
    def num_units(self) -> int:
        """n."""
        return self.sae.config.dictionary_size

    def unit_name(self, unit: int) -> str:
        """For people: `latent 17`, or `neuron 5 +` and `neuron 5 -` (above and below its mean), `component 5 +`."""
        kind = _SIGNED.get(self.sae.config.architecture)
        if kind is not None:
            width = self.num_units // 2
            return f"{kind} {unit % width} {'+' if unit < width else '-'}"
        return f"latent {unit}"

    @torch.no_grad()
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `encode_sparse` returns for hidden states [R, d_model]: values in the units' own scale."""
        return self.sae.encode_sparse(x)

    def normalised(self, indices: Tensor, values: Tensor) -> Sparse:
        """Normalised activations [R, n], CSR fp32, of what `encode` returned.

        1 is the largest value on the reference set. A unit that was silent there stays 0: it has no scale.
        """
        highest = self.sae.latent_max.numpy()[indices.numpy()]
        normalised = np.divide(values.numpy(), highest, out=np.zeros_like(highest), where=highest > 0)
        num_rows, per_row = indices.shape
        pointers = np.arange(0, num_rows * per_row + 1, per_row)
        return sparse.csr_matrix(
            (normalised.reshape(-1), indices.numpy().reshape(-1), pointers), shape=(num_rows, self.num_units)
        )

    def activations(self, x: Tensor) -> Sparse:
        """Normalised activations [R, n], CSR fp32, of hidden states [R, d_model]."""
        return self.normalised(*self.encode(x))


def neurons(inputs: Inputs) -> SparseAutoencoder:
    """The neurons of the SAE's layer as units: each coordinate above and below its mean (Simon & Zou 2024).

    Their maxima are taken over as many (shuffled) training rows of the store as the SAE's were, so that neither
    method's thresholds profit from a larger sample.
    """
    ours = inputs.sae.config
    d_model = ours.d_model
    config = ours.replace(architecture="neurons", dictionary_size=2 * d_model, k=d_model, options={}, training={})
    baseline = build(config)
    baseline.initialise(torch.Generator().manual_seed(0), center=inputs.mean)
    low, high = torch.full((d_model,), torch.inf), torch.full((d_model,), -torch.inf)
    store = BlockStore(inputs.store, "train")
    left = int(ours.training.get("latent_max_rows", store.num_rows))
    for rows in store.rows(ROWS_AT_ONCE):
        part = rows[:left]
        low, high = torch.minimum(low, part.amin(dim=0)), torch.maximum(high, part.amax(dim=0))
        left -= len(part)
        if left == 0:
            break
    baseline.latent_max.copy_(torch.cat([high - inputs.mean, inputs.mean - low]).clamp_min(0))
    return baseline
