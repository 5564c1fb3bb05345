"""ESM C (Candido et al. 2026), as transformers' `EsmcForMaskedLM` saves it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from plmsae.errors import UserError
from plmsae.plms.alphabet import ESM, ESM_MASK, ESM_TOKENS
from plmsae.plms.attention import attend
from plmsae.plms.base import ATTENTION, MLP, Tokens
from plmsae.plms.checkpoint import Checkpoint, reading_config, refuse_unless
from plmsae.plms.linear import Affine, linear, linear_gelu
from plmsae.plms.network import Layout, Network, Tap, no_tap
from plmsae.plms.packed import PackedLM
from plmsae.plms.rotary import inverse_frequencies, paired_rows, rotate_

NORM_EPS = 1e-5  # of torch.nn.LayerNorm, which the library uses without a setting of its own
SPECIALS = 2


@dataclass(frozen=True)
class Config:
    """The architecture, under the names of transformers' `EsmcConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def scaling_factor(self) -> float:
        """What attention and feed-forward outputs are divided by before they are added (ESM3, Hayes et al. 2025)."""
        return math.sqrt(self.num_hidden_layers / 36)


@dataclass(frozen=True)
class _Block:
    """One block; the outputs `out` and `down` are divided by the scaling factor, rotary pairs lie side by side."""

    attention_norm: Affine
    qkv: Tensor
    query_norm: Tensor
    key_norm: Tensor
    out: Tensor
    mlp_norm: Affine
    gate_up: Tensor
    down: Tensor


class EsmC(PackedLM):
    """A masked language model of ESM C's architecture.

    Layer index: as `ProteinLM` says; the last is after the final norm, which has no bias. ESM C divides what attention
    and feed-forward put out by sqrt(num_layers / 36) before it adds them. The hooks `attention` and `mlp` are what is
    added, after the division, so that they sum to the residual stream; times `scaling_factor` they are the outputs of
    the library's modules.
    Letters: the 20 amino acids and X B U Z O, each a token of its own. The chain break `|` is not a residue.

    Args:
        name: Name it is known by.
        checkpoint: Its files.
        revision: What pins them.

    Raises:
        UserError: Not a checkpoint of this architecture.
        DataError: A corrupted or incomplete file.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, revision: str) -> None:
        config = _read_config(checkpoint)
        self.max_residues = config.max_position_embeddings - SPECIALS
        tokens = [*ESM_TOKENS, *(f"<unused_{i}>" for i in range(len(ESM_TOKENS), config.vocab_size))]
        tokens[tokens.index("<null_1>")] = "|"
        self.vocabulary = {token: index for index, token in enumerate(tokens)}
        self.objective = "masked"
        self.mask_id = ESM_MASK
        self.scaling_factor = config.scaling_factor
        super().__init__(name, revision, ESM, _EsmCNetwork(config, checkpoint))


class _EsmCNetwork(Network):
    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        self.num_layers = config.num_hidden_layers
        self.d_model = config.hidden_size
        self._config = config
        self._embedding = checkpoint.place(
            checkpoint.tensor("esmc.embed_tokens.weight", config.vocab_size, config.hidden_size)
        )
        self.inverse_frequencies = checkpoint.place(inverse_frequencies(config.rope_theta, config.head_dim))
        self._blocks = [_read_block(checkpoint, f"esmc.layers.{i}", config) for i in range(self.num_layers)]
        self._norm = checkpoint.place(checkpoint.tensor("esmc.norm.weight", self.d_model))
        self._head_dense = _affine(checkpoint, "lm_head.dense", self.d_model, self.d_model)
        self._head_norm = _affine(checkpoint, "lm_head.layer_norm", self.d_model)
        self._decoder = _affine(checkpoint, "lm_head.decoder", config.vocab_size, self.d_model)

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Network.embed`."""
        return self._embedding[tokens.ids.to(self._embedding.device)]

    def block(self, index: int, hidden: Tensor, layout: Layout, tap: Tap = no_tap) -> Tensor:
        """See `Network.block`."""
        block = self._blocks[index]
        hidden = hidden + tap(ATTENTION, self._attention(block, hidden, layout))
        return hidden + tap(MLP, self._mlp(block, hidden))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """See `Network.final_norm`."""
        return _norm(hidden, self._norm)

    def head(self, hidden: Tensor) -> Tensor:
        """See `Network.head`."""
        hidden = linear_gelu(hidden, self._head_dense.weight, self._head_dense.bias)
        hidden = _norm(hidden, self._head_norm.weight, self._head_norm.bias)
        return linear(hidden, self._decoder.weight, self._decoder.bias)

    def _attention(self, block: _Block, hidden: Tensor, layout: Layout) -> Tensor:
        heads, width = self._config.num_attention_heads, self._config.head_dim
        normed = _norm(hidden, block.attention_norm.weight, block.attention_norm.bias)
        query, key, value = linear(normed, block.qkv, None).view(len(hidden), 3, -1).unbind(1)
        both = torch.stack([_norm(query, block.query_norm), _norm(key, block.key_norm)], dim=1)
        both = both.view(len(hidden), 2, heads, width)
        rotate_(both, layout.rotation)
        attended = attend(both[:, 0], both[:, 1], value.view(-1, heads, width), layout, scale=width**-0.5)
        return linear(attended, block.out, None)

    def _mlp(self, block: _Block, hidden: Tensor) -> Tensor:
        wide = linear(_norm(hidden, block.mlp_norm.weight, block.mlp_norm.bias), block.gate_up, None)
        gate, up = wide.chunk(2, dim=1)
        return linear(F.silu(gate) * up, block.down, None)


def _norm(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:], weight, bias, NORM_EPS)


def _affine(checkpoint: Checkpoint, name: str, *shape: int) -> Affine:
    weight = checkpoint.tensor(f"{name}.weight", *shape)
    bias = checkpoint.place(checkpoint.tensor(f"{name}.bias", shape[0]))
    return Affine(checkpoint.matrix(weight) if len(shape) == 2 else checkpoint.place(weight), bias)


def _read_block(checkpoint: Checkpoint, prefix: str, config: Config) -> _Block:
    d, wide, scale = config.hidden_size, config.intermediate_size, config.scaling_factor
    rows = paired_rows(config.num_attention_heads, config.head_dim)
    query, key, value = (checkpoint.tensor(f"{prefix}.self_attn.{name}_proj.weight", d, d) for name in "qkv")
    gate, up = (checkpoint.tensor(f"{prefix}.mlp.{name}_proj.weight", wide, d) for name in ("gate", "up"))
    return _Block(
        attention_norm=_affine(checkpoint, f"{prefix}.input_layernorm", d),
        # A LayerNorm over all heads commutes with the order of its inputs.
        qkv=checkpoint.matrix(torch.cat([query[rows], key[rows], value])),
        query_norm=checkpoint.place(checkpoint.tensor(f"{prefix}.self_attn.q_norm.weight", d)[rows]),
        key_norm=checkpoint.place(checkpoint.tensor(f"{prefix}.self_attn.k_norm.weight", d)[rows]),
        out=checkpoint.matrix(checkpoint.tensor(f"{prefix}.self_attn.o_proj.weight", d, d) / scale),
        mlp_norm=_affine(checkpoint, f"{prefix}.post_attention_layernorm", d),
        gate_up=checkpoint.matrix(torch.cat([gate, up])),
        down=checkpoint.matrix(checkpoint.tensor(f"{prefix}.mlp.down_proj.weight", d, wide) / scale),
    )


def _read_config(checkpoint: Checkpoint) -> Config:
    folder, raw = checkpoint.folder, checkpoint.config
    with reading_config(folder):
        if "d_model" in raw:  # before the port to transformers, which says no width of the feed-forward part
            width = int(raw["d_model"])
            new = {"hidden_size": width, "num_hidden_layers": raw["n_layers"], "num_attention_heads": raw["n_heads"]}
            raw = {**raw, **new, "intermediate_size": (8 * width // 3 + 255) // 256 * 256}
        rope = raw.get("rope_parameters") or {}
        config = Config(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_hidden_layers=int(raw["num_hidden_layers"]),
            num_attention_heads=int(raw["num_attention_heads"]),
            max_position_embeddings=int(raw.get("max_position_embeddings", 2048)),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        )
        found = {
            "model_type": raw.get("model_type"),
            "hidden_act": raw.get("hidden_act", "silu"),
            "attention_bias": bool(raw.get("attention_bias")),
            "mlp_bias": bool(raw.get("mlp_bias")),
            "tie_word_embeddings": bool(raw.get("tie_word_embeddings")),
            "mask_token_id": raw.get("mask_token_id", ESM_MASK),
            "rope_type": rope.get("rope_type", "default"),
            "head_dim": raw.get("head_dim") or config.head_dim,
        }
    expected = {
        "model_type": "esmc",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "mask_token_id": ESM_MASK,
        "rope_type": "default",
        "head_dim": config.head_dim,
    }
    refuse_unless(folder, found, expected, "of ESM C's architecture")
    if config.hidden_size % (2 * config.num_attention_heads) or config.vocab_size < len(ESM_TOKENS):
        raise UserError(
            f"'{folder}' has an odd head width or too small a vocabulary",
            where=str(folder),
            fix="use an ESM C checkpoint, e.g. biohub/ESMC-300M",
        )
    return config
