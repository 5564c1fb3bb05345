"""Sparse autoencoders: architectures, losses, kernels and files. Needs torch and safetensors alone.

To add an architecture, write one module with a `SparseAutoencoder` and add its line to `_ARCHITECTURES`; the
contract tests run over every entry. torch is imported when an SAE is built or read, not before.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.errors import UserError, did_you_mean
from plmsae.saes.config import SaeConfig

if TYPE_CHECKING:
    from plmsae.saes.base import SparseAutoencoder

__all__ = [
    "SaeConfig",
    "architectures",
    "build",
    "load_folder",
    "sae_class",
    "save",
    "sparsity",
    "trainable_architectures",
]

# name -> (module:class, whether it is trained)
_ARCHITECTURES: dict[str, tuple[str, bool]] = {
    "batch_topk": ("plmsae.saes.batch_topk:BatchTopK", True),
    "gated": ("plmsae.saes.gated:Gated", True),
    "ica": ("plmsae.saes.components:ICA", False),
    "jump_relu": ("plmsae.saes.jump_relu:JumpReLU", True),
    "l1_april": ("plmsae.saes.l1_april:L1April", True),
    "matryoshka": ("plmsae.saes.matryoshka:Matryoshka", True),
    "neurons": ("plmsae.saes.neurons:Neurons", False),
    "pca": ("plmsae.saes.components:PCA", False),
    "random": ("plmsae.saes.random_dictionary:RandomDictionary", False),
    "relu": ("plmsae.saes.relu:ReLU", True),
    "topk": ("plmsae.saes.topk:TopK", True),
}
_K_ON_AVERAGE = ("batch_topk", "matryoshka")


def architectures() -> tuple[str, ...]:
    """Names of all architectures, baselines included."""
    return tuple(sorted(_ARCHITECTURES))


def trainable_architectures() -> tuple[str, ...]:
    """Names of the architectures that `train_sae` can train."""
    return tuple(name for name in architectures() if _ARCHITECTURES[name][1])


def sparsity(config: SaeConfig) -> str:
    """How many latents are active on a token, in words: `k = 32`, `k = 32 on average` or `any number active`."""
    if config.k == config.dictionary_size:
        return "any number active"
    return f"k = {config.k} on average" if config.architecture in _K_ON_AVERAGE else f"k = {config.k}"


def sae_class(architecture: str) -> type[SparseAutoencoder]:
    """The class behind a name.

    Raises:
        UserError: There is no such architecture.
    """
    if architecture not in _ARCHITECTURES:
        raise UserError(f"unknown SAE architecture '{architecture}'", fix=did_you_mean(architecture, _ARCHITECTURES))
    module, _, name = _ARCHITECTURES[architecture][0].partition(":")
    found: type[SparseAutoencoder] = getattr(import_module(module), name)
    return found


def build(config: SaeConfig, *, seed: int = 0) -> SparseAutoencoder:
    """A new SAE, initialised from a seed.

    Raises:
        UserError: The architecture is unknown or the configuration does not fit it.
    """
    import torch

    sae = sae_class(config.architecture)(config)
    sae.initialise(torch.Generator().manual_seed(seed))
    return sae


def save(sae: SparseAutoencoder, folder: Path) -> None:
    """Write `sae.safetensors` and `config.json` (see `plmsae.saes.files`)."""
    from plmsae.saes.files import save as write

    write(sae, folder)


def load_folder(folder: Path) -> SparseAutoencoder:
    """Read an SAE folder strictly (see `plmsae.saes.files`)."""
    from plmsae.saes.files import load_folder as read

    return read(folder)
