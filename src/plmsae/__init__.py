"""plmsae: sparse autoencoders on protein language models.

`plmsae.load(uri_or_folder)` gives a trained SAE, `plmsae.features(sequence, sae)` its active latents per residue.
Both are imported on first use, so that `import plmsae` stays fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plmsae.interpretation.features import features as features
    from plmsae.registry.load import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "features", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from plmsae.registry.load import load

        return load
    if name == "features":
        from plmsae.interpretation.features import features

        return features
    raise AttributeError(f"module 'plmsae' has no attribute '{name}'")
