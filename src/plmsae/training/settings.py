"""How to train, resolved to numbers: what the loop needs and nothing that names a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plmsae.errors import UserError


@dataclass(frozen=True)
class TrainingSettings:
    """Length, rate, and when to look.

    Attributes:
        num_steps: Steps in all.
        batch_size: Tokens of a step.
        learning_rate: Adam's rate after the warm-up.
        warmup_steps: Steps of linear warm-up.
        decay_fraction: Share of the training over which the rate falls linearly to zero at its end.
        dead_after_tokens: A latent that has not fired for so many training tokens is dead.
        validate_every: Steps between rows of the curves.
        num_valid_rows: Held-out rows behind each of them.
        checkpoint_every: Steps between checkpoints.
        seed: Seed of the initial weights.
        device: `cpu` or `cuda`.
        clip_norm: Bound of the gradient's global norm, after the projection.
        penalty_warmup_fraction: Share of the training over which a sparsity penalty rises linearly to its weight.
        anneal_fraction: Share of the training over which k falls from `anneal_from`; 0 for none.
        anneal_from: Latents per token at the first step.
        resample_steps: Steps after which dead latents are started anew.
        num_resample_rows: Training rows whose errors then say where.
        center: Where the decoder's bias starts, one of `plmsae.training.center.CENTERS`.
        num_init_rows: Rows behind the initial decoder bias and the variance that training FVU is relative to.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    decay_fraction: float
    dead_after_tokens: int
    validate_every: int
    num_valid_rows: int
    checkpoint_every: int
    seed: int
    device: str = "cpu"
    clip_norm: float = 1.0
    penalty_warmup_fraction: float = 0.05
    anneal_fraction: float = 0.0
    anneal_from: int = 1
    resample_steps: tuple[int, ...] = ()
    num_resample_rows: int = 819_200
    center: str = "geometric_median"
    num_init_rows: int = 16_384


def resolve_device(device: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device == "cuda" and not available:
        raise UserError("device 'cuda' is not available here", fix="set train_sae.device to auto or cpu")
    return device
