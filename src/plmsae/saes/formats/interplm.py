"""InterPLM: `ae.pt`, a state_dict of one of five classes that share names with dictionary_learning.

`config.yaml` is not read: the tensors say all of it, but for TopK and BatchTopK, which have the same names; there the
class is passed. `activation_rescale_factor` holds the largest value of each latent and becomes `latent_max`; it never
changes a reconstruction. `normalize_to_sqrt_d`, a norm of sqrt(d) for every token, is no scale and is refused.
"""

from __future__ import annotations

from pathlib import Path

import torch

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import cannot, parts, transposed
from plmsae.saes.formats.tensors import Shapes, checked, read_pt, require_file, whole_number

WEIGHTS = "ae.pt"
LINEAR: Shapes = {"encoder.weight": "nd", "encoder.bias": "n", "decoder.weight": "dn"}
TOP_K: Shapes = {**LINEAR, "b_dec": "d", "k": "", "threshold": ""}
OPTIONAL: Shapes = {"activation_rescale_factor": "n", "normalize_to_sqrt_d": ""}
# class -> (our architecture, tensors, where our b_dec is)
_CLASSES: dict[str, tuple[str, Shapes, str]] = {
    "BatchTopKSAE": ("batch_topk", TOP_K, "b_dec"),
    "JumpReLUSAE": ("jump_relu", {**LINEAR, "decoder.bias": "d", "threshold": "n"}, "decoder.bias"),
    "ReLUSAE": ("relu", {**LINEAR, "bias": "d"}, "bias"),
    "ReLUSAE_Tied": ("l1_april", {**LINEAR, "decoder.bias": "d"}, "decoder.bias"),
    "TopKSAE": ("topk", TOP_K, "b_dec"),
}


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`."""
    path = require_file(folder, WEIGHTS)
    state = read_pt(path)
    # A file that is like no class is held against the one that is told, or the oldest, and its flaw is named there.
    told = [origin.dictionary_class] if origin.dictionary_class in _CLASSES else []
    own = set(state) - set(OPTIONAL)
    fitting = [name for name, (_, shapes, _) in _CLASSES.items() if own == set(shapes)] or told or ["ReLUSAE"]
    name = origin.one_of(fitting[0] if len(fitting) == 1 else None, tuple(_CLASSES), path)
    architecture, shapes, bias = _CLASSES[name]
    found, sizes = checked(state, shapes, path, OPTIONAL)
    if "normalize_to_sqrt_d" in found and bool(found["normalize_to_sqrt_d"]):
        raise UserError(
            "normalize_to_sqrt_d divides every token by its own norm, which no scale can express",
            where=str(path),
            fix="use it with InterPLM, or train an SAE here on the same activations",
        )
    tensors = {
        "W_enc": found["encoder.weight"],
        "b_enc": found["encoder.bias"],
        "W_dec": transposed(found["decoder.weight"]),
        "b_dec": found[bias],
    }
    if architecture in ("batch_topk", "jump_relu"):
        tensors["threshold"] = found["threshold"]
    if architecture == "jump_relu":
        # Its ReLU after the jump makes a threshold below 0 the same as 0.
        tensors["threshold"].clamp_(min=0.0)
    factors = found.get("activation_rescale_factor")
    if factors is not None and not bool((factors == 1).all()):
        if bool((factors < 0).any()):
            raise DataError("activation_rescale_factor holds negative numbers", where=str(path), fix="measure it again")
        tensors["latent_max"] = factors
    k = whole_number(found["k"], "k", 1, sizes["n"], path) if "k" in found else None
    return origin.build(architecture, tensors, source=path, stated=name, k=k)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`. `matryoshka` becomes the BatchTopK that it computes; its groups are not written."""
    architecture, tensors = parts(sae)
    architecture = "batch_topk" if architecture == "matryoshka" else architecture
    name = next((item for item, entry in _CLASSES.items() if entry[0] == architecture), None)
    if name is None:
        raise cannot(sae, "interplm", "that library has no class that computes its latents")
    _, shapes, bias = _CLASSES[name]
    highest = tensors["latent_max"]
    state = {
        "encoder.weight": tensors["W_enc"],
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": transposed(tensors["W_dec"]),
        bias: tensors["b_dec"],
        "activation_rescale_factor": torch.where(highest > 0, highest, 1.0),
        "normalize_to_sqrt_d": torch.tensor(False),
    }
    if "k" in shapes:
        state["k"] = torch.tensor(sae.config.k, dtype=torch.int32)
    if "threshold" in shapes:
        state["threshold"] = tensors.get("threshold", torch.tensor(-1.0))
    torch.save(state, folder / WEIGHTS)
