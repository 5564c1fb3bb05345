"""dictionary_learning (saprmarks), and Reticular, whose training code is a copy of it.

A folder with `ae.pt` (a state_dict) and `config.json` (`trainer.dict_class`, `trainer.k`). Reticular publishes
checkpoints alone, so `config.json` may be missing and the class is passed; their norm factor is in no file either.
Latents are those of `encode` with its default arguments.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin
from plmsae.saes.formats.ours import cannot, check_normaliser, parts, transposed
from plmsae.saes.formats.tensors import Shapes, checked, read_json, read_pt, require_file, whole_number
from plmsae.saes.options import group_sizes

WEIGHTS, CONFIG = "ae.pt", "config.json"
LINEAR: Shapes = {"encoder.weight": "nd", "encoder.bias": "n", "decoder.weight": "dn"}
PLAIN: Shapes = {"W_enc": "dn", "b_enc": "n", "W_dec": "nd", "b_dec": "d"}

# class -> (our architecture, tensors, our name -> theirs).
_CLASSES: dict[str, tuple[str, Shapes, dict[str, str]]] = {
    "AutoEncoder": (
        "relu",
        {**LINEAR, "bias": "d"},
        {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "bias"},
    ),
    "AutoEncoderNew": (
        "l1_april",
        {**LINEAR, "decoder.bias": "d"},
        {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "decoder.bias"},
    ),
    "AutoEncoderTopK": (
        "topk",
        {**LINEAR, "b_dec": "d", "k": ""},
        {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "b_dec"},
    ),
    "BatchTopKSAE": (
        "batch_topk",
        {**LINEAR, "b_dec": "d", "k": "", "threshold": ""},
        {
            "W_enc": "encoder.weight",
            "b_enc": "encoder.bias",
            "W_dec": "decoder.weight",
            "b_dec": "b_dec",
            "threshold": "threshold",
        },
    ),
    "MatryoshkaBatchTopKSAE": (
        "matryoshka",
        {**PLAIN, "k": "", "threshold": "", "group_sizes": "G"},
        {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"},
    ),
    "JumpReluAutoEncoder": (
        "jump_relu",
        {**PLAIN, "threshold": "n"},
        {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec", "threshold": "threshold"},
    ),
    "GatedAutoEncoder": (
        "gated",
        {"encoder.weight": "nd", "decoder.weight": "dn", "decoder_bias": "d", "gate_bias": "n", "mag_bias": "n",
         "r_mag": "n"},
        {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias", "b_gate": "gate_bias",
         "b_mag": "mag_bias", "r_mag": "r_mag"},
    ),
}  # fmt: skip
# AutoEncoderTopK has a threshold that `encode` reads on request only; old files have none.
_OPTIONAL: dict[str, Shapes] = {"AutoEncoderTopK": {"threshold": ""}}


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`."""
    path = require_file(folder, WEIGHTS)
    trainer = _trainer(folder / CONFIG)
    stated = trainer.get("dict_class")
    name = origin.one_of(None if stated is None else str(stated), tuple(_CLASSES), folder)
    architecture, shapes, names = _CLASSES[name]
    found, sizes = checked(read_pt(path), shapes, path, _OPTIONAL.get(name))
    for key, letter in (("activation_dim", "d"), ("dict_size", "n")):
        if trainer.get(key) not in (None, sizes[letter]):
            raise DataError(
                f"trainer.{key} = {trainer[key]}, but the tensors of {WEIGHTS} imply {sizes[letter]}",
                where=str(folder / CONFIG),
                fix="put the files of one training together",
            )
    tensors = {ours: _oriented(found[theirs], shapes[theirs]) for ours, theirs in names.items()}
    k, options = None, {}
    if "k" in shapes:
        k = whole_number(found["k"], "k", 1, sizes["n"], path)
        if trainer.get("k") not in (None, k):
            raise DataError(
                f"trainer.k = {trainer['k']}, but k of {WEIGHTS} is {k}",
                where=str(folder / CONFIG),
                fix="put the files of one training together",
            )
    if "group_sizes" in shapes:
        options = {"group_sizes": found["group_sizes"].tolist(), "reduction": "dictionary_learning"}
        _check_groups(options, sizes["n"], path)
    if architecture == "jump_relu":
        # Its ReLU after the jump makes a threshold below 0 the same as 0.
        tensors["threshold"].clamp_(min=0.0)
    return origin.build(architecture, tensors, source=path, stated=name, k=k, options=options)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`."""
    check_normaliser(sae, "dictionary_learning")
    architecture, tensors = parts(sae)
    name = next((item for item, entry in _CLASSES.items() if entry[0] == architecture), None)
    if name is None:
        raise cannot(sae, "dictionary_learning", "that library has no class that computes its latents")
    _, shapes, names = _CLASSES[name]
    state = {theirs: _oriented(tensors[ours], shapes[theirs]) for ours, theirs in names.items()}
    if "k" in shapes:
        state["k"] = torch.tensor(sae.config.k, dtype=torch.int32)
    if name == "AutoEncoderTopK":
        state["threshold"] = torch.tensor(-1.0)
    if "group_sizes" in shapes:
        state["group_sizes"] = torch.tensor(sae.options["group_sizes"])
    torch.save(state, folder / WEIGHTS)
    config = sae.config
    trainer: dict[str, Any] = {
        "dict_class": name,
        "activation_dim": config.d_model,
        "dict_size": config.dictionary_size,
        "lm_name": config.plm,
        "lm_revision": config.plm_revision,
        "layer": config.layer,
        "submodule_name": config.hook,
    }
    if "k" in shapes:
        trainer["k"] = config.k
    text = json.dumps({"trainer": trainer, "buffer": {}}, indent=4, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def _trainer(path: Path) -> dict[str, Any]:
    """The entry `trainer` of a configuration; empty if there is no file."""
    if not path.is_file():
        return {}
    trainer = read_json(path).get("trainer")
    if not isinstance(trainer, dict):
        raise DataError("key 'trainer' is missing", where=str(path), fix="restore the file, or remove it")
    return trainer


def _oriented(tensor: Tensor, shape: str) -> Tensor:
    """Between ours, where matrices are [n, d], and what the class stores; its own inverse."""
    return transposed(tensor) if shape == "dn" else tensor


def _check_groups(options: dict[str, Any], n: int, path: Path) -> None:
    try:
        group_sizes(options, n)
    except UserError as error:
        raise DataError(error.problem, where=str(path), fix="import the file that the training wrote") from error
