"""Which latent to steer: the one that was asked for, or one that the proteins at hand use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.plms.parallel import ordered_map
from plmsae.saes.base import SparseAutoencoder
from plmsae.steering.inputs import Source

MOST_COMMON = 0.1  # a latent that is active on more residues than this says little about any of them
STRONG = 0.5


def checked_latent(sae: SparseAutoencoder, latent: int) -> int:
    """The latent itself, once it is known to exist and to have fired.

    Raises:
        UserError: It is out of range, or was silent when the maxima were measured.
        DataError: The maxima were not measured.
    """
    size = sae.config.dictionary_size
    if not bool((sae.latent_max > 0).any()):
        raise DataError(
            "the largest activations of the latents are not known",
            where="latent_max",
            fix="train the SAE with train_sae, which measures them",
        )
    if not 0 <= latent < size:
        raise UserError(
            f"the SAE has no latent {latent}",
            where="steer.latent",
            fix=f"use 0 to {size - 1}, or -1 to let it choose",
        )
    if not float(sae.latent_max[latent]) > 0:
        raise UserError(
            f"latent {latent} is dead: it never fired on the residues that maxima were measured on",
            where="steer.latent",
            fix="choose another one, or -1 to let it choose",
        )
    return latent


def choose_latent(source: Source, batches: Iterable[Sequence[str]], threads: int) -> int:
    """The latent that reaches half of its maximum on the most residues of the given proteins.

    Only latents that are active on at most a tenth of the residues count (all, if there is no such latent); ties go
    to the smaller index. The effect of steering plays no part, so it can be judged on the same proteins.

    Args:
        source: Model and SAE.
        batches: Sequences of each batch.
        threads: Batches that run at once; the choice does not depend on it.

    Raises:
        DataError: No latent fires, or the maxima were not measured.
    """
    sae = source.sae
    size, layer, hook = sae.config.dictionary_size, sae.config.layer, sae.config.hook
    highest = sae.latent_max

    def count(sequences: Sequence[str]) -> tuple[Tensor, Tensor, int]:
        tokens = source.plm.tokenize(sequences)
        with torch.no_grad():
            indices, values = sae.encode_sparse(source.plm.hidden(tokens, layer, hook))
        active = (values > 0) & (highest[indices] > 0)
        strong = active & (values >= STRONG * highest[indices])
        return (
            torch.bincount(indices[active], minlength=size),
            torch.bincount(indices[strong], minlength=size),
            tokens.num_residues,
        )

    num_active, num_strong, num_residues = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64), 0
    for active, strong, residues in ordered_map(count, batches, threads):
        num_active += active
        num_strong += strong
        num_residues += residues
    if not bool((num_active > 0).any()):
        raise DataError(
            f"none of the {size} latents fires on the chosen proteins",
            fix="look at the density of the SAE in the output of train_sae; train longer or with a larger k",
        )
    fitting = (num_active > 0) & (num_active <= MOST_COMMON * num_residues)
    if not bool(fitting.any()):
        fitting = num_active > 0
    return int(torch.where(fitting, num_strong, -1).argmax())
