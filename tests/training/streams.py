"""Synthetic activations: sparse sums of known directions around a mean, and a source that serves them by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from plmsae.saes import SaeConfig
from plmsae.training.settings import TrainingSettings

D_MODEL, NUM_DIRECTIONS = 16, 48


def activations(num_rows: int, seed: int = 0) -> Tensor:
    """Rows [N, 16] of unit mean squared norm: 48 sparse directions and a common mean."""
    generator = torch.Generator().manual_seed(99)
    directions = torch.randn(NUM_DIRECTIONS, D_MODEL, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    weights = (torch.randn(num_rows, NUM_DIRECTIONS, generator=generator) - 1.6).relu()
    x = weights @ directions + 0.5
    return x / x.square().sum(1).mean().sqrt()


class Rows:
    """A source in memory: the rows in order, again and again."""

    def __init__(self, x: Tensor, batch_size: int) -> None:
        self.x, self.batch_size = x, batch_size

    @property
    def num_rows(self) -> int:
        return len(self.x)

    def state(self) -> dict[str, int]:
        return {"world_size": 1, "batch_size": self.batch_size}

    def batch(self, step: int) -> Tensor:
        return self.x[(torch.arange(self.batch_size) + step * self.batch_size) % len(self.x)]


def small_config(k: int = 6, dictionary_size: int = 64, architecture: str = "topk", **options: object) -> SaeConfig:
    normaliser = {"kind": "rms", "scale": 1.0, "folded": False}
    return SaeConfig(architecture, D_MODEL, dictionary_size, k, "plm", "revision", 1, "residual", normaliser, options)


def small_settings(**changes: object) -> TrainingSettings:
    """Small ones; `decay_fraction` and `penalty_warmup_fraction` are shares of the training."""
    settings: dict[str, object] = {
        "num_steps": 120,
        "batch_size": 256,
        "learning_rate": 3e-3,
        "warmup_steps": 10,
        "decay_fraction": 0.2,
        "dead_after_tokens": 4096,
        "validate_every": 20,
        "num_valid_rows": 1000,
        "checkpoint_every": 25,
        "seed": 3,
        "num_init_rows": 2048,
    }
    given: dict[str, Any] = {**settings, **changes}
    given["decay_steps"] = given.pop("decay_fraction") * given["num_steps"]
    given["penalty_warmup_steps"] = given.pop("penalty_warmup_fraction", 0.05) * given["num_steps"]
    return TrainingSettings(**given)
