"""Run the model with and without the edit, and with controls of the same size, and compare its predictions.

Everything is about the 20 amino acids: scores of other tokens are left out and probabilities are normalised among
the 20. Sums are in fp64. Nothing is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plmsae.errors import DataError
from plmsae.plms.base import Edit
from plmsae.steering.clamp import Clamp, SameSizeMove
from plmsae.steering.inputs import Source

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """What an edit did to the predictions at R residues.

    Attributes:
        kl: [R] divergence of the edited from the clean distribution, KL(clean || edited), nats.
        mean_abs: [R] mean over the 20 amino acids of |change of the logit|.
        max_abs: [R] the largest of them.
        before: [R] index of the likeliest amino acid without the edit.
        after: [R] the same with it.
        probability: [R, 20] change of the probability.
    """

    kl: Floats
    mean_abs: Floats
    max_abs: Floats
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    probability: Floats


@dataclass(frozen=True)
class Batch:
    """What was measured on a batch of R residues, in the order of its sequences.

    Attributes:
        activation: [R] the latent's activation before the edit.
        shift: [R] norm of the change of the hidden state.
        clean: [R, 20] probabilities without the edit.
        latent: The change that the clamp made.
        controls: The changes along each random direction.
    """

    activation: Floats
    shift: Floats
    clean: Floats
    latent: Change
    controls: tuple[Change, ...]


def measure(
    source: Source,
    sequences: Sequence[str],
    names: Sequence[str],
    edited: NDArray[np.bool_],
    *,
    latent: int,
    value: float,
    strength: float,
    directions: Tensor,
) -> Batch:
    """Clamp a latent on some residues of a batch.

    Args:
        source: Model and SAE.
        sequences: The sequences.
        names: Their names, for messages.
        edited: bool [R], the residues to edit.
        latent: Index of the latent.
        value: The value it is held at.
        strength: 0 (no edit) to 1.
        directions: [n, d_model] unit vectors of the controls.

    Raises:
        DataError: A sequence that cannot be encoded, or scores that are not finite.
    """
    tokens = source.plm.tokenize(sequences, names)
    config = source.sae.config
    clamp = Clamp(source.sae, latent, value, strength, torch.from_numpy(edited))
    functions: list[Callable[[Tensor], Tensor]] = [clamp, *(SameSizeMove(clamp, u) for u in directions)]
    edits = [Edit(config.layer, config.hook, function) for function in functions]
    letters = torch.tensor([source.plm.vocabulary[letter] for letter in AMINO_ACIDS])
    # In this order: the clamp finds the lengths that the controls use.
    every = (logits[:, letters] for logits in source.plm.logits_each(tokens, [None, *edits]))
    clean = next(every)
    changes = []
    for logits in every:
        if not bool(logits.isfinite().all()):
            raise DataError(
                "the model's scores are not finite after the edit", where=", ".join(names[:3]), fix="lower steer.clamp"
            )
        changes.append(_change(clean, logits))
    return Batch(
        activation=clamp.activation.double().numpy(),
        shift=(clamp.amount.abs() * clamp.atom.norm()).double().numpy(),
        clean=torch.softmax(clean.double(), dim=1).numpy(),
        latent=changes[0],
        controls=tuple(changes[1:]),
    )


def _change(clean: Tensor, edited: Tensor) -> Change:
    difference = (edited.double() - clean.double()).abs()
    before, after = torch.log_softmax(clean.double(), dim=1), torch.log_softmax(edited.double(), dim=1)
    return Change(
        # Rounding can leave a divergence of nothing a little below zero.
        kl=(before.exp() * (before - after)).sum(dim=1).clamp_min(0).numpy(),
        mean_abs=difference.mean(dim=1).numpy(),
        max_abs=difference.amax(dim=1).numpy(),
        before=before.argmax(dim=1).numpy(),
        after=after.argmax(dim=1).numpy(),
        probability=(after.exp() - before.exp()).numpy(),
    )
