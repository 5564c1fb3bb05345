"""Biohub's ESM C SAEs: `config.json` and one `layer_<l>.safetensors` for each layer of a repository.

    x~ = (x - mu) / (sigma + 1e-5);   z = TopK_k(ReLU(W_enc (x~ - b_dec)));   x~^ = W_dec^T z + b_dec

with mu and sigma of the token itself (Biohub/esm, `esm/models/esmc/sae.py`): our `topk` with the normaliser
`layer_norm` and no encoder bias. The library stops at x~^; the reconstruction here is sigma x~^ + mu. `max`, the
largest value of each latent, becomes `latent_max` where it is not all ones; `idf`, a weight for ranking latents, has
no place here and is left out.

l counts the hidden states, 0 for the embeddings. Which model, and whether hidden states or the output of an MLP, is
in the repository's name alone, so the caller says it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import LAYER_NORM, cannot, parts, require_layer_norm, transposed
from plmsae.saes.formats.tensors import AGAIN, Shapes, checked, read_json, read_safetensors, require_file, whole_number

CONFIG = "config.json"
MODEL_TYPE = "esmc_sae"
SHAPES: Shapes = {"W_enc": "dn", "W_dec": "nd", "b_dec": "d", "idf": "n", "max": "n"}


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`; `layer` chooses the file."""
    config_path = require_file(folder, CONFIG)
    config = read_json(config_path)
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise UserError(
            f"model_type = {config['model_type']!r} is not '{MODEL_TYPE}'",
            where=str(config_path),
            fix="pass the folder of an ESM C SAE repository",
        )
    if config.get("use_residual_update_instead_of_states", False):
        raise UserError(
            "use_residual_update_instead_of_states is set: it reads h[l] - h[l-1]",
            where=str(config_path),
            fix="there is no such hook here; use it with Biohub's esm",
        )
    path = folder / f"layer_{origin.layer}.safetensors"
    if not path.is_file():
        there = sorted(int(item.stem.removeprefix("layer_")) for item in folder.glob("layer_*.safetensors")
                       if item.stem.removeprefix("layer_").isdigit())  # fmt: skip
        raise UserError(
            f"there is no SAE of layer {origin.layer}",
            where=str(folder),
            fix="pass one of the layers " + (", ".join(map(str, there)) or "(none is here)"),
        )
    found, sizes = checked(read_safetensors(path), SHAPES, path)
    for key, letter in (("d_model", "d"), ("codebook_dim", "n")):
        if config.get(key) != sizes[letter]:
            raise DataError(
                f"{key} = {config.get(key)!r}, but the tensors imply {sizes[letter]}", where=str(config_path), fix=AGAIN
            )
    k = whole_number(config.get("k"), "k", 1, sizes["n"], config_path)
    tensors = {
        "W_enc": transposed(found["W_enc"]),
        "b_enc": torch.zeros(sizes["n"]),
        "W_dec": found["W_dec"],
        "b_dec": found["b_dec"],
    }
    if not bool((found["max"] == 1).all()):
        if bool((found["max"] < 0).any()):
            raise DataError("max holds negative numbers", where=str(path), fix=AGAIN)
        tensors["latent_max"] = found["max"]
    return origin.build("topk", tensors, source=path, stated="EsmcSaeLayer", k=k, normaliser=LAYER_NORM)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`. `idf` is written as ones."""
    architecture, tensors = parts(sae)
    if architecture != "topk":
        raise cannot(sae, "biohub", "that library computes the k largest latents of each token and nothing else")
    require_layer_norm(sae, "biohub")
    if bool(tensors["b_enc"].any()):
        raise cannot(sae, "biohub", "that library has no encoder bias")
    highest = tensors["latent_max"]
    state = {
        "W_enc": transposed(tensors["W_enc"]),
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        "idf": torch.ones_like(highest),
        "max": torch.where(highest > 0, highest, 1.0),
    }
    layer = sae.config.layer
    save_file(state, folder / f"layer_{layer}.safetensors")
    config = {
        "available_layers": [layer],
        "codebook_dim": sae.config.dictionary_size,
        "d_model": sae.config.d_model,
        "k": sae.config.k,
        "model_type": MODEL_TYPE,
        "use_residual_update_instead_of_states": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
