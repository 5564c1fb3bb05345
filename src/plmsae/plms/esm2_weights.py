"""Reading an ESM-2 checkpoint: `config.json` and safetensors as transformers' `EsmForMaskedLM` saves them.

The tensors are read straight into the form that the packed forward wants (fused query, key and value; rotary pairs
side by side), so transformers is not imported. Everything is checked: a missing tensor, a wrong shape or a value that
is not finite is an error, never a random initialisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from plmsae.artifacts.checksums import sha256_bytes, sha256_file
from plmsae.errors import DataError, UserError
from plmsae.plms.alphabet import MASK, PAD, TOKENS

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


@dataclass(frozen=True)
class EsmConfig:
    """The architecture, under the names of transformers' `EsmConfig`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    token_dropout: bool

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a linear layer ([out, in] and [out]) or a LayerNorm ([d] each)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Block:
    """One transformer block; `qkv` is [3d, d] with query scaled and rotary pairs side by side (see `_fuse`)."""

    attention_norm: Affine
    qkv: Affine
    attention_out: Affine
    ffn_norm: Affine
    ffn_up: Affine
    ffn_down: Affine


@dataclass(frozen=True)
class EsmWeights:
    """All tensors of the model, fp32. `inverse_frequencies` [head_dim / 2] are those of the rotary embedding."""

    config: EsmConfig
    embedding: Tensor
    inverse_frequencies: Tensor
    blocks: tuple[Block, ...]
    final_norm: Affine
    head_dense: Affine
    head_norm: Affine
    decoder: Affine


def read_config(folder: Path) -> EsmConfig:
    """Read and check `config.json`.

    Raises:
        UserError: There is none, or it describes another architecture than ESM-2's.
        DataError: It is malformed.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {CONFIG}", fix="name a folder written by save_pretrained")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config = EsmConfig(
            hidden_size=int(raw["hidden_size"]),
            num_hidden_layers=int(raw["num_hidden_layers"]),
            num_attention_heads=int(raw["num_attention_heads"]),
            intermediate_size=int(raw["intermediate_size"]),
            layer_norm_eps=float(raw["layer_norm_eps"]),
            max_position_embeddings=int(raw["max_position_embeddings"]),
            rope_theta=float(raw.get("rope_theta") or 10000.0),
            token_dropout=bool(raw.get("token_dropout", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("the PLM's config is not valid", where=f"{path}: {error}", fix="restore the file") from error
    expected = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "vocab_size": len(TOKENS),
        "mask_token_id": MASK,
        "pad_token_id": PAD,
    }
    wrong = [f"{key} = {raw.get(key)!r}, not {value!r}" for key, value in expected.items() if raw.get(key) != value]
    wrong += [f"{key} is set" for key in ("emb_layer_norm_before", "is_decoder", "is_folding_model") if raw.get(key)]
    if wrong or config.hidden_size % (2 * config.num_attention_heads):
        raise UserError(
            f"'{folder}' is not an ESM-2 masked language model: {'; '.join(wrong) or 'odd head width'}",
            where=str(path),
            fix="use an ESM-2 checkpoint, e.g. facebook/esm2_t6_8M_UR50D",
        )
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards named by its index.

    Raises:
        UserError: There is none.
        DataError: The index is malformed or names a missing shard.
    """
    single, index = folder / WEIGHTS, folder / WEIGHTS_INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise UserError(
            f"'{folder}' holds no {WEIGHTS}",
            fix="convert the checkpoint with save_pretrained; pickled weights are never loaded",
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError("the index of the weights is not valid", where=str(index), fix="download it again") from error
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise DataError(f"weight file '{shard}' is missing", where=str(folder), fix="download it again")
    return [folder / shard for shard in shards]


def revision_of(folder: Path) -> str:
    """`sha256:<hex>` of the weight file; of the list of their sums where there are several."""
    sums = [sha256_file(file) for file in weight_files(folder)]
    return f"sha256:{sums[0] if len(sums) == 1 else sha256_bytes(' '.join(sums).encode())}"


def read_weights(folder: Path) -> EsmWeights:
    """Read a checkpoint folder.

    Raises:
        UserError: Not an ESM-2 checkpoint in safetensors form.
        DataError: A corrupted file, a missing tensor, a wrong shape or values that are not finite.
    """
    config = read_config(folder)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt", device="cpu") as handle:
                tensors.update({_current_name(name): handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(
                f"weight file '{file.name}' is corrupted", where=f"{file}: {error}", fix="restore or download it again"
            ) from error

    def get(name: str, *shape: int) -> Tensor:
        if name not in tensors:
            raise DataError(f"the weights lack '{name}'", where=str(folder), fix="use a complete masked-LM checkpoint")
        tensor = tensors[name].float()
        if tuple(tensor.shape) != shape:
            raise DataError(
                f"'{name}' has shape {list(tensor.shape)}, not {list(shape)} as {CONFIG} says",
                where=str(folder),
                fix="use the weights and the configuration of one checkpoint",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"'{name}' holds values that are not finite", where=str(folder), fix="restore the file")
        return tensor.contiguous()

    def affine(name: str, *shape: int) -> Affine:
        return Affine(get(f"{name}.weight", *shape), get(f"{name}.bias", shape[0]))

    d, vocabulary = config.hidden_size, len(TOKENS)
    embedding = get("esm.embeddings.word_embeddings.weight", vocabulary, d)
    tied = "lm_head.decoder.weight" not in tensors
    return EsmWeights(
        config=config,
        embedding=embedding,
        inverse_frequencies=_inverse_frequencies(config, tensors),
        blocks=tuple(_block(f"esm.encoder.layer.{i}", config, affine) for i in range(config.num_hidden_layers)),
        final_norm=affine("esm.encoder.emb_layer_norm_after", d),
        head_dense=affine("lm_head.dense", d, d),
        head_norm=affine("lm_head.layer_norm", d),
        decoder=Affine(
            embedding if tied else get("lm_head.decoder.weight", vocabulary, d), get("lm_head.bias", vocabulary)
        ),
    )


def _current_name(name: str) -> str:
    """`save_pretrained` of transformers 5 writes some LayerNorms under the names of TensorFlow's."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _block(prefix: str, config: EsmConfig, affine: Callable[..., Affine]) -> Block:
    d, wide = config.hidden_size, config.intermediate_size
    query, key, value = (affine(f"{prefix}.attention.self.{name}", d, d) for name in ("query", "key", "value"))
    return Block(
        attention_norm=affine(f"{prefix}.attention.LayerNorm", d),
        qkv=_fuse(query, key, value, config),
        attention_out=affine(f"{prefix}.attention.output.dense", d, d),
        ffn_norm=affine(f"{prefix}.LayerNorm", d),
        ffn_up=affine(f"{prefix}.intermediate.dense", wide, d),
        ffn_down=affine(f"{prefix}.output.dense", d, wide),
    )


def _fuse(query: Affine, key: Affine, value: Affine, config: EsmConfig) -> Affine:
    """One [3d, d] layer for query, key and value.

    ESM scales the query by head_dim^-1/2, which commutes with the rotation and is folded in here. Its rotary
    embedding pairs dimension i of a head with i + head_dim / 2; the rows of query and key are reordered so that the
    two lie side by side and the rotation is one multiplication of complex numbers. Their dot products do not change.
    """
    heads, width = config.num_attention_heads, config.head_dim
    pairs = torch.arange(width).view(2, width // 2).T.reshape(-1)
    rows = (torch.arange(heads)[:, None] * width + pairs).reshape(-1)
    scale = width**-0.5
    return Affine(
        torch.cat([query.weight[rows] * scale, key.weight[rows], value.weight]).contiguous(),
        torch.cat([query.bias[rows] * scale, key.bias[rows], value.bias]).contiguous(),
    )


def _inverse_frequencies(config: EsmConfig, tensors: dict[str, Tensor]) -> Tensor:
    """theta^(-2i / head_dim), or what each layer of an older checkpoint stores: values rounded to fp16 in training."""
    stored = tensors.get("esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq")
    if stored is not None:
        return stored.float()
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return 1.0 / (config.rope_theta**exponents)
