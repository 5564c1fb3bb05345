"""ProGen2 (Nijkamp et al. 2023), a causal protein language model; its weights are those of transformers' CodeGen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from plmsae.errors import UserError
from plmsae.plms.alphabet import Alphabet
from plmsae.plms.attention import attend
from plmsae.plms.base import ATTENTION, MLP, Tokens
from plmsae.plms.checkpoint import Checkpoint, reading_config, refuse_unless
from plmsae.plms.linear import Affine, linear
from plmsae.plms.network import Layout, Network, Tap, no_tap
from plmsae.plms.packed import PackedLM
from plmsae.plms.rotary import inverse_frequencies, rotate_

# The published tokenizer (tokenizer.json of salesforce/progen): sequences are read from the N to the C terminus after a
# "1", or backwards after a "2".
_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "1", "2", *"ABCDEFGHIKLMNOPQRSTUVWXYZ")
_N_TERMINUS = _TOKENS.index("1")
_ALPHABET = Alphabet({letter: _TOKENS.index(letter) for letter in _TOKENS[5:]}, before=(_N_TERMINUS,), after=())
# Heads are computed in groups of rows [query | value | key], one per core of the machine that the model was trained on.
_GROUPS = {"progen": 8, "codegen": 4}


@dataclass(frozen=True)
class Config:
    """The architecture, under the names of transformers' `CodeGenConfig`."""

    vocab_size: int
    n_embd: int
    n_inner: int
    n_layer: int
    n_head: int
    n_positions: int
    rotary_dim: int
    layer_norm_epsilon: float
    groups: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class _Block:
    norm: Affine
    qkv: Tensor
    out: Tensor
    up: Affine
    down: Affine


class ProGen2(PackedLM):
    """ProGen2, read from the N to the C terminus: a residue's states depend on it and on what is before it.

    Layer index: as `ProteinLM` says. Attention and feed-forward of a block read the same normalised input and are
    added together, so that `mlp` does not see the `attention` of its block.
    Scores: those of row r are of the residue after it; nothing can be masked.
    Letters: every letter but J, each a token of its own.

    Args:
        name: Name it is known by.
        checkpoint: Its files; `model_type` progen, or codegen for one saved by transformers' `CodeGenForCausalLM`.
        revision: What pins them.

    Raises:
        UserError: Not a checkpoint of this architecture.
        DataError: A corrupted or incomplete file.
    """

    def __init__(self, name: str, checkpoint: Checkpoint, revision: str) -> None:
        config = _read_config(checkpoint)
        self.max_residues = config.n_positions - len(_ALPHABET.before)
        tokens = [*_TOKENS, *(f"<unused_{i}>" for i in range(len(_TOKENS), config.vocab_size))]
        self.vocabulary = {token: index for index, token in enumerate(tokens)}
        self.objective = "causal"
        self.mask_id = None
        super().__init__(name, revision, _ALPHABET, _ProGen2Network(config, checkpoint))


class _ProGen2Network(Network):
    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        self.num_layers = config.n_layer
        self.d_model = config.n_embd
        self._config = config
        self._embedding = checkpoint.place(
            checkpoint.tensor("transformer.wte.weight", config.vocab_size, config.n_embd)
        )
        self.inverse_frequencies = checkpoint.place(inverse_frequencies(10000.0, config.rotary_dim))
        self._blocks = [_read_block(checkpoint, f"transformer.h.{i}", config) for i in range(self.num_layers)]
        self._final_norm = _norm_of(checkpoint, "transformer.ln_f", self.d_model)
        self._head = _linear_of(checkpoint, "lm_head", config.vocab_size, self.d_model)

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Network.embed`."""
        return self._embedding[tokens.ids.to(self._embedding.device)]

    def block(self, index: int, hidden: Tensor, layout: Layout, tap: Tap = no_tap) -> Tensor:
        """See `Network.block`."""
        block = self._blocks[index]
        normed = self._norm(hidden, block.norm)
        attended = tap(ATTENTION, self._attention(block, normed, layout))
        wide = F.gelu(linear(normed, block.up.weight, block.up.bias), approximate="tanh")
        return hidden + attended + tap(MLP, linear(wide, block.down.weight, block.down.bias))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """See `Network.final_norm`."""
        return self._norm(hidden, self._final_norm)

    def head(self, hidden: Tensor) -> Tensor:
        """See `Network.head`."""
        return linear(hidden, self._head.weight, self._head.bias)

    def _attention(self, block: _Block, normed: Tensor, layout: Layout) -> Tensor:
        heads, width = self._config.n_head, self._config.head_dim
        qkv = linear(normed, block.qkv, None).view(-1, 3, heads, width)
        rotate_(qkv[:, :2, :, : self._config.rotary_dim], layout.rotation)
        query, key, value = qkv.unbind(1)
        return linear(attend(query, key, value, layout, scale=width**-0.5, causal=True), block.out, None)

    def _norm(self, hidden: Tensor, affine: Affine) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], affine.weight, affine.bias, self._config.layer_norm_epsilon)


def _norm_of(checkpoint: Checkpoint, name: str, size: int) -> Affine:
    weight, bias = (checkpoint.tensor(f"{name}.{part}", size) for part in ("weight", "bias"))
    return Affine(checkpoint.place(weight), checkpoint.place(bias))


def _linear_of(checkpoint: Checkpoint, name: str, out: int, into: int) -> Affine:
    weight = checkpoint.tensor(f"{name}.weight", out, into)
    return Affine(checkpoint.matrix(weight), checkpoint.place(checkpoint.tensor(f"{name}.bias", out)))


def _read_block(checkpoint: Checkpoint, prefix: str, config: Config) -> _Block:
    d, wide = config.n_embd, config.n_inner
    grouped = checkpoint.tensor(f"{prefix}.attn.qkv_proj.weight", 3 * d, d).view(config.groups, 3, -1, d)
    query, value, key = (part.reshape(d, d) for part in grouped.unbind(1))
    return _Block(
        norm=_norm_of(checkpoint, f"{prefix}.ln_1", d),
        qkv=checkpoint.matrix(torch.cat([query, key, value])),
        out=checkpoint.matrix(checkpoint.tensor(f"{prefix}.attn.out_proj.weight", d, d)),
        up=_linear_of(checkpoint, f"{prefix}.mlp.fc_in", wide, d),
        down=_linear_of(checkpoint, f"{prefix}.mlp.fc_out", d, wide),
    )


def _read_config(checkpoint: Checkpoint) -> Config:
    folder, raw = checkpoint.folder, checkpoint.config
    with reading_config(folder):
        model_type = str(raw["model_type"])
        width = int(raw["embed_dim"] if "embed_dim" in raw else raw["n_embd"])
        config = Config(
            vocab_size=int(raw["vocab_size_emb"] if "vocab_size_emb" in raw else raw["vocab_size"]),
            n_embd=width,
            n_inner=int(raw.get("n_inner") or 4 * width),
            n_layer=int(raw["n_layer"]),
            n_head=int(raw["n_head"]),
            n_positions=int(raw["n_positions"]),
            rotary_dim=int(raw["rotary_dim"]),
            layer_norm_epsilon=float(raw.get("layer_norm_epsilon", 1e-5)),
            groups=_GROUPS[model_type],
        )
        found = {
            "activation_function": raw.get("activation_function", "gelu_new"),
            "vocab_size_lm_head": raw.get("vocab_size_lm_head", config.vocab_size),
        }
    expected = {"activation_function": "gelu_new", "vocab_size_lm_head": config.vocab_size}
    refuse_unless(folder, found, expected, "of ProGen2's architecture")
    odd = config.n_embd % config.n_head or config.rotary_dim % 2 or config.rotary_dim > config.head_dim
    if odd or config.n_head % config.groups or config.vocab_size < len(_TOKENS):
        raise UserError(
            f"'{folder}' has heads that do not fit, or too small a vocabulary",
            where=str(folder),
            fix="use a ProGen2 checkpoint, e.g. hugohrban/progen2-small",
        )
    return config
