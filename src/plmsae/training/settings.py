"""How to train, resolved to numbers: what the loop needs and nothing that names a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from plmsae.errors import UserError
from plmsae.plms.linear import has_fast_bfloat16


@dataclass(frozen=True)
class TrainingSettings:
    """Length, rate, and when to look.

    Attributes:
        num_steps: Steps in all.
        batch_size: Tokens of a step.
        learning_rate: Adam's rate after the warm-up.
        warmup_steps: Steps of linear warm-up.
        decay_steps: Steps, at the end, over which the rate falls linearly to zero.
        dead_after_tokens: A latent that has not fired for so many training tokens is dead.
        validate_every: Steps between rows of the curves.
        num_valid_rows: Held-out rows behind each of them.
        checkpoint_every: Steps between checkpoints.
        seed: Seed of the initial weights.
        device: `cpu` or `cuda`.
        betas: Adam's decay rates; None for the architecture's own.
        eps: Adam's epsilon.
        clip_norm: Bound of the gradient's global norm; None for none.
        clip_first: Clip before the atoms' parallel gradient is removed, rather than after.
        clip_together: One norm for all parameters, rather than one for each group of the optimiser.
        threshold_learning_rate: Rate of the parameters in groups of their own; None for the same.
        penalty_warmup_steps: Steps over which a sparsity penalty rises linearly to its weight.
        warmup_from_zero: Both warm-ups have the factor 0 at the first step, as in dictionary_learning, which then
            moves nothing but the optimiser's moments; by default they have 1 / steps.
        anneal_fraction: Share of the training over which k falls from `anneal_from`; 0 for none.
        anneal_from: Latents per token at the first step.
        resample_steps: Steps after which dead latents are started anew.
        num_resample_rows: Training rows whose errors then say where.
        center: Where the decoder's bias starts, one of `plmsae.training.center.CENTERS`.
        num_init_rows: Rows behind the variance that training FVU is relative to.
        num_center_rows: Rows, at most so many, behind the initial decoder bias; None for as many.
        precision: Of the factors of a step's matrix products, `float32` or `bfloat16`.
        wandb_project: Project of Weights & Biases that gets the curves; None for none.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: float
    decay_steps: float
    dead_after_tokens: int
    validate_every: int
    num_valid_rows: int
    checkpoint_every: int
    seed: int
    device: str = "cpu"
    betas: tuple[float, float] | None = None
    eps: float = 6.25e-10
    clip_norm: float | None = 1.0
    clip_first: bool = False
    clip_together: bool = False
    threshold_learning_rate: float | None = None
    penalty_warmup_steps: float = 0.0
    warmup_from_zero: bool = False
    anneal_fraction: float = 0.0
    anneal_from: int = 1
    resample_steps: tuple[int, ...] = ()
    num_resample_rows: int = 819_200
    center: str = "geometric_median"
    num_init_rows: int = 16_384
    num_center_rows: int | None = None
    precision: str = "float32"
    wandb_project: str | None = None


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


def multiplies_bfloat16(device: str) -> bool:
    """Whether products in bf16 are faster than in fp32: on GPUs from Ampere on, on CPUs with AMX or AVX-512 BF16."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return has_fast_bfloat16()
