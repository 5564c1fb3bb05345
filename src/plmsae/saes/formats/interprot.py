"""InterProt: one file with `w_enc` [d, n], `w_dec` [n, d], `b_enc` [n] and `b_pre` [d] of its `SparseAutoencoder`.

    x~ = (x - mu) / (sigma + 1e-5);   z = ReLU(TopK_k(W_enc (x~ - b_pre) + b_enc))
    x^ = sigma (W_dec^T z + b_pre) + mu

with mu and sigma of the token itself (etowahadams/interprot, `sae_model.py`): our `topk` with the normaliser
`layer_norm`. Published as safetensors, as a state_dict, or as a Lightning checkpoint whose entries begin with
`sae_model.`. k is in no file (only in the file's name, and not always), so it is passed. Atoms are not of norm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import LAYER_NORM, cannot, parts, require_layer_norm, transposed
from plmsae.saes.formats.tensors import Shapes, checked, only_file, read_pt_mapping, read_safetensors, tensors_of

WEIGHTS = "sae.safetensors"
SHAPES: Shapes = {"w_enc": "dn", "w_dec": "nd", "b_enc": "n", "b_pre": "d"}
# Steps since a latent fired: of use in their training alone.
OPTIONAL: Shapes = {"stats_last_nonzero": "n"}
NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_pre"}
PREFIX = "sae_model."


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`."""
    path = only_file(folder, (".safetensors", ".pt", ".ckpt"))
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        content = read_pt_mapping(path)
        nested = content.get("state_dict")
        state = tensors_of(nested if isinstance(nested, Mapping) else content, path)
    state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    found, sizes = checked(state, SHAPES, path, OPTIONAL)
    k = origin.latents_per_token(None, sizes["n"], path)
    tensors = {ours: transposed(found[theirs]) if ours == "W_enc" else found[theirs] for ours, theirs in NAMES.items()}
    return origin.build("topk", tensors, source=path, stated="SparseAutoencoder", k=k, normaliser=LAYER_NORM)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`. k is not in the file: it is an argument of their class."""
    architecture, tensors = parts(sae)
    if architecture != "topk":
        raise cannot(sae, "interprot", "that library computes the k largest latents of each token and nothing else")
    require_layer_norm(sae, "interprot")
    state = {theirs: transposed(tensors[ours]) if ours == "W_enc" else tensors[ours] for ours, theirs in NAMES.items()}
    save_file(state, folder / WEIGHTS)
