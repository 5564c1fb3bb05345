"""SAELens, the inference format of version 6 and later: `cfg.json` and `sae_weights.safetensors`.

W_enc is [d, n] and W_dec [n, d]. Where b_dec is or is not taken off before the encoder (`apply_b_dec_to_input`) but
our architecture has it the other way, the encoder's bias takes up the difference, W_enc b_dec. Decoder norms that
rescale latents (`rescale_acts_by_decoder_norm`) move into the encoder. Both are exact but for fp32 rounding.

`expected_average_only_in` means activations times `scaling_factor` of `activation_scaler.json`, which is our
normaliser with scale 1 / factor. `layer_norm` and `constant_norm_rescale` work token by token; `covariance_whitening`
is folded into the weights by the library itself when it saves an SAE for inference.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.formats.origin import Origin, moved_bias
from plmsae.saes.formats.ours import LAYER_NORM, THRESHOLDED, cannot, check_normaliser, parts, transposed
from plmsae.saes.formats.tensors import (
    AGAIN,
    Shapes,
    checked,
    read_json,
    read_safetensors,
    require_file,
    whole_number,
)

WEIGHTS, CONFIG, SCALER = "sae_weights.safetensors", "cfg.json", "activation_scaler.json"
# The version whose files these are; readers convert older ones.
VERSION = "6.54.12"
BASE: Shapes = {"W_enc": "dn", "W_dec": "nd", "b_dec": "d"}
_SHAPES: dict[str, Shapes] = {
    "standard": {**BASE, "b_enc": "n"},
    "topk": {**BASE, "b_enc": "n"},
    "jumprelu": {**BASE, "b_enc": "n", "threshold": "n"},
    "gated": {**BASE, "b_gate": "n", "b_mag": "n", "r_mag": "n"},
}


def read(folder: Path, origin: Origin) -> SparseAutoencoder:
    """See `import_sae`."""
    config_path, path = require_file(folder, CONFIG), require_file(folder, WEIGHTS)
    cfg = read_json(config_path)
    _check_version(cfg, config_path)
    name = origin.one_of(str(cfg.get("architecture")), tuple(_SHAPES), config_path)
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(
            f"reshape_activations = {cfg['reshape_activations']!r}: it reads the heads of an attention layer apart",
            where=str(config_path),
            fix="there is no such hook here; use it with SAELens",
        )
    normaliser = _normaliser(cfg, folder)
    found, sizes = checked(read_safetensors(path), _SHAPES[name], path)
    for key, letter in (("d_in", "d"), ("d_sae", "n")):
        if cfg.get(key) != sizes[letter]:
            raise DataError(
                f"{key} = {cfg.get(key)!r}, but the tensors imply {sizes[letter]}", where=str(config_path), fix=AGAIN
            )
    pre_bias = _flag(cfg, "apply_b_dec_to_input", config_path)
    tensors = {**found, "W_enc": transposed(found["W_enc"])}
    k = None
    if name == "topk":
        k = whole_number(cfg.get("k"), "k", 1, sizes["n"], config_path)
        if cfg.get("rescale_acts_by_decoder_norm", False):
            _norms_to_encoder(tensors, path)
    if name == "jumprelu":
        # Its ReLU makes a threshold below 0 the same as 0.
        tensors["threshold"].clamp_(min=0.0)
    architecture = {"topk": "topk", "jumprelu": "jump_relu", "gated": "gated"}.get(name, "relu")
    if name == "standard" and not pre_bias:
        architecture, pre_bias = "l1_april", True
    _move_bias(tensors, gained=name in ("topk", "gated") and not pre_bias, lost=name == "jumprelu" and pre_bias)
    return origin.build(architecture, tensors, source=path, stated=name, k=k, normaliser=normaliser)


def write(sae: SparseAutoencoder, folder: Path) -> None:
    """See `export_sae`. One threshold becomes n equal ones; groups of `matryoshka` are not written."""
    check_normaliser(sae, "saelens", LAYER_NORM, {"kind": "token_rms"})
    architecture, tensors = parts(sae)
    name = {"relu": "standard", "l1_april": "standard", "jump_relu": "jumprelu"}.get(architecture, architecture)
    if architecture in THRESHOLDED:
        name = "jumprelu"
        tensors["threshold"] = tensors["threshold"].expand(sae.config.dictionary_size).contiguous()
    if name not in _SHAPES:
        raise cannot(sae, "saelens", "none of its inference architectures computes these latents")
    state = {key: transposed(tensors[key]) if key == "W_enc" else tensors[key] for key in _SHAPES[name]}
    save_file(state, folder / WEIGHTS)
    config = sae.config
    normalisation = {"layer_norm": "layer_norm", "token_rms": "constant_norm_rescale"}
    cfg: dict[str, Any] = {
        "architecture": name,
        "d_in": config.d_model,
        "d_sae": config.dictionary_size,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": architecture not in ("l1_april", "jump_relu"),
        "normalize_activations": normalisation.get(config.normaliser["kind"], "none"),
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": config.plm,
            "hook_name": f"{config.hook}.{config.layer}",
        },
    }
    if name == "topk":
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    (folder / CONFIG).write_text(json.dumps(cfg, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _check_version(cfg: Mapping[str, Any], path: Path) -> None:
    metadata = cfg.get("metadata")
    version = str(metadata.get("sae_lens_version")) if isinstance(metadata, dict) else "None"
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < 6:
        raise UserError(
            "the files are of SAELens before version 6 (metadata.sae_lens_version), whose keys mean other things",
            where=str(path),
            fix="load and save them with SAELens 6 once",
        )
    if cfg.get("architecture") not in _SHAPES:
        raise UserError(
            f"SAELens architecture {cfg.get('architecture')!r} cannot be imported",
            where=str(path),
            fix=f"{did_you_mean(str(cfg.get('architecture')), _SHAPES)} Save a training SAE with save_inference_model; "
            "a transcoder is no autoencoder",
        )


def _flag(cfg: Mapping[str, Any], key: str, path: Path) -> bool:
    value = cfg.get(key)
    if not isinstance(value, bool):
        raise DataError(f"{key} = {value!r} is not true or false", where=str(path), fix=AGAIN)
    return value


def _normaliser(cfg: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Our normaliser for what `normalize_activations` says."""
    mode = cfg.get("normalize_activations", "none")
    if mode == "none":
        return {"kind": "rms", "scale": 1.0, "folded": True}
    if mode == "expected_average_only_in":
        path = require_file(folder, SCALER)
        factor = read_json(path).get("scaling_factor")
        number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not number or not math.isfinite(float(factor or 0)) or float(factor or 0) <= 0:
            raise DataError(f"scaling_factor = {factor!r} is not a positive number", where=str(path), fix=AGAIN)
        return {"kind": "rms", "scale": 1 / float(factor or 1), "folded": False}
    if mode == "layer_norm":
        return dict(LAYER_NORM)
    if mode == "constant_norm_rescale":
        return {"kind": "token_rms"}
    raise UserError(
        f"normalize_activations = {mode!r} cannot be imported",
        where=str(folder / CONFIG),
        fix="save the SAE with SAELens' save_inference_model, which folds what can be folded",
    )


def _norms_to_encoder(tensors: dict[str, Tensor], path: Path) -> None:
    norms = torch.linalg.vector_norm(tensors["W_dec"].double(), dim=1)
    if not bool((norms > 0).all()):
        raise DataError(
            f"{int((norms == 0).sum())} rows of W_dec are zero, by whose norms latents are divided",
            where=str(path),
            fix=AGAIN,
        )
    tensors["W_enc"] = (tensors["W_enc"].double() * norms.unsqueeze(1)).float()
    tensors["b_enc"] = (tensors["b_enc"].double() * norms).float()
    tensors["W_dec"] = (tensors["W_dec"].double() / norms.unsqueeze(1)).float()


def _move_bias(tensors: dict[str, Tensor], *, gained: bool, lost: bool) -> None:
    """Give the encoder's biases what b_dec before the encoder takes off, or take it from them, in place."""
    if not gained and not lost:
        return
    moved = moved_bias(tensors["W_enc"], tensors["b_dec"]) * (1.0 if gained else -1.0)
    scales = {"b_enc": 1.0, "b_gate": 1.0, "b_mag": tensors["r_mag"].double().exp() if "r_mag" in tensors else 1.0}
    for name, scale in scales.items():
        if name in tensors:
            tensors[name] = (tensors[name].double() + scale * moved).float()
