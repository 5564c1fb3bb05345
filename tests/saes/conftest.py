from collections.abc import Callable
from typing import Any

import pytest
import torch

from plmsae.saes import SaeConfig, build
from plmsae.saes.base import SparseAutoencoder

# What an architecture needs beyond d_model 12, 40 latents and k = 5: no number of latents per token, or options that
# suit so small a dictionary.
SMALL: dict[str, dict[str, Any]] = {
    "gated": {"k": 40, "options": {"penalty": 0.02}},
    "ica": {"dictionary_size": 24},
    "jump_relu": {"k": 40, "options": {"bandwidth": 0.5, "initial_threshold": 0.1, "penalty": 0.01}},
    "l1_april": {"k": 40, "options": {"penalty": 0.02}},
    "matryoshka": {"options": {"group_sizes": [4, 12, 24]}},
    "neurons": {"dictionary_size": 24, "k": 12},
    "pca": {"dictionary_size": 24},
    "relu": {"k": 40, "options": {"penalty": 0.02}},
}


def config_of(architecture: str, **changes: Any) -> SaeConfig:
    settings: dict[str, Any] = {
        "d_model": 12,
        "dictionary_size": 40,
        "k": 5,
        **SMALL.get(architecture, {}),
        "architecture": architecture,
        "plm": "esm_small",
        "plm_revision": "sha256:00",
        "layer": 4,
        "hook": "residual",
        "normaliser": {"kind": "rms", "scale": 2.5, "folded": False},
    }
    return SaeConfig(**{**settings, **changes})


def generic_sae(
    architecture: str = "topk", *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> SparseAutoencoder:
    """An SAE with generic weights: every bias and both matrices differ from their starting values."""
    sae = build(config_of(architecture, **changes), seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator).to(dtype)
            tensor.add_(noise.abs() if name == "latent_max" else 0.2 * noise)
        sae.constrain_weights()
    sae.calibrate(torch.randn(200, sae.config.d_model, generator=generator).to(dtype))
    return sae


@pytest.fixture
def make_sae() -> Callable[..., SparseAutoencoder]:
    return generic_sae


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
