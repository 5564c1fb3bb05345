"""Reading an ESM-2 checkpoint: `config.json` and safetensors as transformers' `EsmForMaskedLM` saves them.

The tensors are read straight into the form that the packed forward wants (fused query, key and value; rotary pairs
side by side), so transformers is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.plms.alphabet import ESM_MASK, ESM_PAD, ESM_TOKENS
from plmsae.plms.checkpoint import Checkpoint, reading_config, refuse_unless
from plmsae.plms.linear import Affine
from plmsae.plms.rotary import inverse_frequencies, paired_rows


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
class Block:
    """One transformer block; `qkv` is [3d, d] with query scaled and rotary pairs side by side (see `_fuse`)."""

    attention_norm: Affine
    qkv: Affine
    attention_out: Affine
    ffn_norm: Affine
    ffn_up: Affine
    ffn_down: Affine


@dataclass(frozen=True)
class Head:
    """From normalised rows to scores."""

    dense: Affine
    norm: Affine
    decoder: Affine


@dataclass(frozen=True)
class EsmWeights:
    """All tensors of the model. `inverse_frequencies` [head_dim / 2] are those of the rotary embedding."""

    config: EsmConfig
    embedding: Tensor
    inverse_frequencies: Tensor
    blocks: tuple[Block, ...]
    final_norm: Affine
    head: Head | None


def read_esm_config(checkpoint: Checkpoint, *, folding: bool = False) -> EsmConfig:
    """Check and read `config.json`.

    Args:
        checkpoint: The checkpoint.
        folding: Whether it is of ESMFold, around its language model.

    Raises:
        UserError: Another architecture.
        DataError: A value is missing or malformed.
    """
    folder, raw = checkpoint.folder, checkpoint.config
    with reading_config(folder):
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
    found = {**raw, **{key: bool(raw.get(key)) for key in ("emb_layer_norm_before", "is_decoder", "is_folding_model")}}
    found["vocab_list"] = raw.get("vocab_list") and list(raw["vocab_list"])
    expected = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "vocab_size": len(ESM_TOKENS),
        "mask_token_id": ESM_MASK,
        "pad_token_id": ESM_PAD,
        "emb_layer_norm_before": False,
        "is_decoder": False,
        "is_folding_model": folding,
        "vocab_list": list(ESM_TOKENS) if found["vocab_list"] else found["vocab_list"],
    }
    refuse_unless(folder, found, expected, "of ESM-2's architecture")
    if config.hidden_size % (2 * config.num_attention_heads):
        raise UserError(
            f"'{folder}' has an odd head width",
            where=str(folder),
            fix="use an ESM-2 checkpoint, e.g. facebook/esm2_t6_8M_UR50D",
        )
    return config


def read_weights(checkpoint: Checkpoint, config: EsmConfig, *, head: bool = True) -> EsmWeights:
    """Read the tensors.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        head: Whether it has a language-model head.

    Raises:
        DataError: A corrupted file, a missing tensor, a wrong shape or values that are not finite.
    """

    def norm(name: str, size: int) -> Affine:
        return Affine(
            checkpoint.place(checkpoint.tensor(f"{name}.weight", size)),
            checkpoint.place(checkpoint.tensor(f"{name}.bias", size)),
        )

    def linear(name: str, out: int, into: int) -> Affine:
        return Affine(
            checkpoint.matrix(checkpoint.tensor(f"{name}.weight", out, into)),
            checkpoint.place(checkpoint.tensor(f"{name}.bias", out)),
        )

    d, wide, vocabulary = config.hidden_size, config.intermediate_size, len(ESM_TOKENS)
    embedding = checkpoint.tensor("esm.embeddings.word_embeddings.weight", vocabulary, d)
    blocks = []
    for index in range(config.num_hidden_layers):
        prefix = f"esm.encoder.layer.{index}"
        blocks.append(
            Block(
                attention_norm=norm(f"{prefix}.attention.LayerNorm", d),
                qkv=_fuse(checkpoint, f"{prefix}.attention.self", config),
                attention_out=linear(f"{prefix}.attention.output.dense", d, d),
                ffn_norm=norm(f"{prefix}.LayerNorm", d),
                ffn_up=linear(f"{prefix}.intermediate.dense", wide, d),
                ffn_down=linear(f"{prefix}.output.dense", d, wide),
            )
        )
    found = None
    if head:
        tied = "lm_head.decoder.weight" not in checkpoint
        decoder = embedding if tied else checkpoint.tensor("lm_head.decoder.weight", vocabulary, d)
        found = Head(
            dense=linear("lm_head.dense", d, d),
            norm=norm("lm_head.layer_norm", d),
            decoder=Affine(checkpoint.matrix(decoder), checkpoint.place(checkpoint.tensor("lm_head.bias", vocabulary))),
        )
    return EsmWeights(
        config=config,
        embedding=checkpoint.place(embedding),
        inverse_frequencies=checkpoint.place(_inverse_frequencies(config, checkpoint)),
        blocks=tuple(blocks),
        final_norm=norm("esm.encoder.emb_layer_norm_after", d),
        head=found,
    )


def _fuse(checkpoint: Checkpoint, prefix: str, config: EsmConfig) -> Affine:
    """One [3d, d] layer for query, key and value.

    ESM scales the query by head_dim^-1/2, which commutes with the rotation and is folded in here. Its rotary
    embedding pairs dimension i of a head with i + head_dim / 2; the rows of query and key are reordered so that the
    two lie side by side and the rotation is one multiplication of complex numbers. Their dot products do not change.
    """
    d = config.hidden_size
    weights = [checkpoint.tensor(f"{prefix}.{name}.weight", d, d) for name in ("query", "key", "value")]
    biases = [checkpoint.tensor(f"{prefix}.{name}.bias", d) for name in ("query", "key", "value")]
    rows = paired_rows(config.num_attention_heads, config.head_dim)
    scale = config.head_dim**-0.5
    return Affine(
        checkpoint.matrix(torch.cat([weights[0][rows] * scale, weights[1][rows], weights[2]])),
        checkpoint.place(torch.cat([biases[0][rows] * scale, biases[1][rows], biases[2]])),
    )


def _inverse_frequencies(config: EsmConfig, checkpoint: Checkpoint) -> Tensor:
    """theta^(-2i / head_dim), or what the checkpoint stores: in fp16, values rounded as they were in training."""
    # The first is of older checkpoints, one per layer and all alike; `*` is literally what transformers 5 writes.
    for part in ("encoder.layer.0.attention.self.", "encoder.layer.*.attention.self.", ""):
        stored = checkpoint.buffer(f"esm.{part}rotary_embeddings.inv_freq")
        if stored is not None:
            return stored
    return inverse_frequencies(config.rope_theta, config.head_dim)
