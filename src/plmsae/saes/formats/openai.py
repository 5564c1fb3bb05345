"""OpenAI's `sparse_autoencoder` (Gao et al. 2024): one `.pt` with a state_dict, and in it the activation's name and k.

    z = activation(W_enc (x~ - pre_bias) + latent_bias);   x^ = W_dec^T z + pre_bias

`TopK` standardises every token before and undoes it after (`layer_norm` here, its `LN`); `ReLU` takes activations as
they are, and how those were scaled is passed (openai/sparse_autoencoder, `model.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import LAYER_NORM, cannot, check_normaliser, parts, require_layer_norm, transposed
from plmsae.saes.formats.tensors import AGAIN, Shapes, checked, only_file, read_pt_mapping, tensors_of, whole_number

WEIGHTS = "ae.pt"
SHAPES: Shapes = {"encoder.weight": "nd", "latent_bias": "n", "decoder.weight": "dn", "pre_bias": "d"}
# What the library knows of its training, and we do not need.
STATISTICS: Shapes = {"stats_last_nonzero": "n", "latents_activation_frequency": "n", "latents_mean_square": "n"}
ARCHITECTURES = {"ReLU": "relu", "TopK": "topk"}


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`."""
    path = only_file(folder, (".pt",))
    content = read_pt_mapping(path)
    name = content.pop("activation", "ReLU")
    settings = content.pop("activation_state_dict", {})
    if name not in ARCHITECTURES or not isinstance(settings, Mapping):
        raise UserError(
            f"activation {name!r} cannot be imported", where=str(path), fix=did_you_mean(str(name), ARCHITECTURES)
        )
    for key, value in settings.items():
        # Its `state_dict` of today says these twice.
        if repr(content.pop(f"activation.{key}", value)) != repr(value):
            raise DataError(
                f"activation.{key} is not {value!r}, as activation_state_dict says", where=str(path), fix=AGAIN
            )
    found, sizes = checked(tensors_of(content, path), SHAPES, path, STATISTICS)
    k, normaliser = None, None
    if name == "TopK":
        k, normaliser = whole_number(settings.get("k"), "k", 1, sizes["n"], path), LAYER_NORM
        if settings.get("postact_fn", "ReLU") != "ReLU":
            raise UserError(
                f"postact_fn = {settings['postact_fn']!r}: latents may be negative", where=str(path), fix="use ReLU"
            )
    tensors = {
        "W_enc": found["encoder.weight"],
        "b_enc": found["latent_bias"],
        "W_dec": transposed(found["decoder.weight"]),
        "b_dec": found["pre_bias"],
    }
    return origin.build(ARCHITECTURES[name], tensors, source=path, stated=name, k=k, normaliser=normaliser)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`."""
    architecture, tensors = parts(sae)
    n = sae.config.dictionary_size
    state: dict[str, Any] = {
        "pre_bias": tensors["b_dec"],
        "latent_bias": tensors.get("b_enc"),
        "stats_last_nonzero": torch.zeros(n, dtype=torch.long),
        "latents_activation_frequency": torch.ones(n),
        "latents_mean_square": torch.zeros(n),
    }
    if architecture == "topk":
        require_layer_norm(sae, "openai")
        state |= {"activation": "TopK", "activation_state_dict": {"k": sae.config.k, "postact_fn": "ReLU"}}
    elif architecture == "relu":
        check_normaliser(sae, "openai")
        state |= {"activation": "ReLU", "activation_state_dict": {}}
    else:
        raise cannot(sae, "openai", "that library has TopK and ReLU alone")
    weights: dict[str, Tensor] = {
        "encoder.weight": tensors["W_enc"],
        "decoder.weight": transposed(tensors["W_dec"]),
    }
    torch.save({**state, **weights}, folder / WEIGHTS)
