"""InterPLM: `ae.pt`, a state_dict of one of five classes that share names with dictionary_learning, and `config.yaml`.

The tensors say all but the class of TopK and BatchTopK, which have the same names: `config.yaml` tells them apart
where it is there, or else the class is passed. What it says of k, of sizes and of `normalize_to_sqrt_d` must agree
with the tensors. `activation_rescale_factor` holds the largest value of each latent and becomes `latent_max`; it never
changes a reconstruction. `normalize_to_sqrt_d`, a norm of sqrt(d) for every token, is our `token_rms`; latents are
those of the library's `forward`, which normalises (its `encode` alone does not), and reconstructions those of
`forward(unnormalize=True)`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import cannot, check_normaliser, parts, transposed
from plmsae.saes.formats.tensors import Shapes, checked, read_pt, require_file, whole_number

WEIGHTS, CONFIG = "ae.pt", "config.yaml"
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
    stated = fitting[0] if len(fitting) == 1 else _trained_as(folder / CONFIG)
    name = origin.one_of(stated, tuple(_CLASSES), path)
    architecture, shapes, bias = _CLASSES[name]
    found, sizes = checked(state, shapes, path, OPTIONAL)
    _check_config(folder / CONFIG, found, sizes)
    per_token = "normalize_to_sqrt_d" in found and bool(found["normalize_to_sqrt_d"])
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
    normaliser = {"kind": "token_rms"} if per_token else None
    return origin.build(architecture, tensors, source=path, stated=name, k=k, normaliser=normaliser)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`. `matryoshka` becomes the BatchTopK that it computes; its groups are not written."""
    check_normaliser(sae, "interplm", {"kind": "token_rms"})
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
        "normalize_to_sqrt_d": torch.tensor(sae.config.per_token),
    }
    if "k" in shapes:
        state["k"] = torch.tensor(sae.config.k, dtype=torch.int32)
    if "threshold" in shapes:
        state["threshold"] = tensors.get("threshold", torch.tensor(-1.0))
    torch.save(state, folder / WEIGHTS)


def _section(path: Path, name: str) -> dict[str, str]:
    """Scalar entries of a section of `config.yaml`, as text; empty if there is no such file or section.

    The library dumps plain mappings in block style, two levels deep; that much is read here without a YAML parser, so
    that SAEs need torch alone. Deeper levels and lists are passed over.
    """
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("not a text file", where=str(path), fix="restore the file, or remove it") from error
    entries: dict[str, str] = {}
    inside = False
    for line in lines:
        if line[:1] not in (" ", "-", "#", ""):
            inside = line.rstrip() == f"{name}:"
        elif inside and (match := re.fullmatch(r"  (\w+): (\S.*?)\s*", line)):
            entries[match[1]] = match[2].strip("'\"")
    return entries


def _trained_as(path: Path) -> str | None:
    """TopKSAE or BatchTopKSAE by the fields that only one of their trainers has; None if that is not said."""
    trainer = _section(path, "trainer_cfg")
    if trainer.get("trainer_name") == "TopKTrainer":
        return "TopKSAE"
    return "BatchTopKSAE" if "dead_feature_threshold" in trainer else None


def _check_config(path: Path, found: dict[str, Tensor], sizes: dict[str, int]) -> None:
    """Refuse a `config.yaml` that contradicts the tensors, or that names statistics which are not in the files."""
    flag = bool(found["normalize_to_sqrt_d"]) if "normalize_to_sqrt_d" in found else False
    wanted = {"dictionary_size": str(sizes["n"]), "activation_dim": str(sizes["d"])}
    wanted["normalize_to_sqrt_d"] = str(flag).lower()
    if "k" in found:
        wanted["k"] = str(int(found["k"]))
    trainer = _section(path, "trainer_cfg")
    for key, value in wanted.items():
        if trainer.get(key, "null") not in ("null", value):
            raise DataError(
                f"trainer_cfg.{key} = {trainer[key]}, but the tensors of {WEIGHTS} say {value}",
                where=str(path),
                fix="put the files of one training together",
            )
    if _section(path, "dataloader_cfg").get("zscore_means_file", "null") != "null":
        raise UserError(
            "zscore_means_file is set: activations were standardised by statistics that are not in these files",
            where=str(path),
            fix="use it with InterPLM, or train an SAE here on the same activations",
        )
