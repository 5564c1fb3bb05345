"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors` of one hookpoint.

W_dec is [n, d] there as here, and b_dec is always taken off before the encoder. `normalize_decoder` matters in
training alone. With `multi_topk` the library's `forward` returns the reconstruction of 4 k latents (1.3.3); here, as
in its `encode`, there are k.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import cannot, check_normaliser, parts
from plmsae.saes.formats.tensors import AGAIN, Shapes, checked, read_json, read_safetensors, require_file, whole_number

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
SHAPES: Shapes = {"encoder.weight": "nd", "encoder.bias": "n", "W_dec": "nd", "b_dec": "d"}
NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
# Settings that put something beside the autoencoder, and what it is.
_REFUSED = {
    "transcode": "it predicts another activation than it reads",
    "skip_connection": "it adds a linear map of its input",
    "embed_skip": "it adds a map of the embeddings",
    "gram_lookup": "it takes off a table of n-gram means",
}


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`."""
    config_path, path = require_file(folder, CONFIG), require_file(folder, WEIGHTS)
    cfg = read_json(config_path)
    for key, reason in _REFUSED.items():
        if cfg.get(key):
            raise UserError(
                f"{key} is set: {reason}", where=str(config_path), fix="use it with sparsify; it is no autoencoder"
            )
    if cfg.get("activation") not in (None, "topk"):
        raise UserError(
            f"activation = {cfg['activation']!r} cannot be imported: the latents are not the k largest",
            where=str(config_path),
            fix="use it with sparsify",
        )
    found, sizes = checked(read_safetensors(path), SHAPES, path)
    if cfg.get("d_in") != sizes["d"] or cfg.get("num_latents", 0) not in (0, sizes["n"]):
        raise DataError(
            f"d_in = {cfg.get('d_in')!r} and num_latents = {cfg.get('num_latents')!r}, but the tensors imply "
            f"{sizes['d']} and {sizes['n']}",
            where=str(config_path),
            fix=AGAIN,
        )
    k = whole_number(cfg.get("k"), "k", 1, sizes["n"], config_path)
    tensors = {ours: found[theirs] for ours, theirs in NAMES.items()}
    return origin.build("topk", tensors, source=path, stated="topk", k=k)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`."""
    check_normaliser(sae, "sparsify")
    architecture, tensors = parts(sae)
    if architecture != "topk":
        raise cannot(sae, "sparsify", "that library computes the k largest latents of each token and nothing else")
    save_file({theirs: tensors[ours] for ours, theirs in NAMES.items()}, folder / WEIGHTS)
    n, d = tensors["W_dec"].shape
    cfg = {
        "activation": "topk",
        "d_in": d,
        "expansion_factor": max(1, n // d),
        "k": sae.config.k,
        "multi_topk": False,
        "normalize_decoder": True,
        "num_latents": n,
        "skip_connection": False,
        "transcode": False,
    }
    (folder / CONFIG).write_text(json.dumps(cfg, sort_keys=True) + "\n", encoding="utf-8")
