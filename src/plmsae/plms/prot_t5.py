"""The encoder of ProtT5 (Elnaggar et al. 2021), as transformers' `T5EncoderModel` saves it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.plms.alphabet import AMINO_ACIDS, Alphabet
from plmsae.plms.attention import attend
from plmsae.plms.base import ATTENTION, MLP, Tokens
from plmsae.plms.checkpoint import Checkpoint, reading_config, refuse_unless
from plmsae.plms.linear import linear
from plmsae.plms.network import Layout, Network, Tap, no_tap
from plmsae.plms.packed import PackedLM
from plmsae.plms.sentencepiece import read_pieces

# Positions are relative, so there is no longest sequence; this bounds the bias of heads x length x length instead.
MAX_RESIDUES = 4096
VOCABULARY_FILE = "spiece.model"
WORD = "\N{LOWER ONE EIGHTH BLOCK}"  # before a piece that starts a word; ProtT5 reads "M K V" as three words


@dataclass(frozen=True)
class Config:
    """The architecture, under the names of transformers' `T5Config`."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float


@dataclass(frozen=True)
class _Block:
    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    up: Tensor
    down: Tensor


class ProtT5(PackedLM):
    """ProtT5's encoder. It has no head: the decoder, which has one, is not read.

    Layer index: as `ProteinLM` says. The norm is T5's: it scales by the root mean square, without mean and bias.
    Letters: the 20 amino acids and X; B O U Z become X, as the authors do. Each residue is one token, no token comes
    before a sequence and `</s>` after it. Token ids are those of the checkpoint's own `spiece.model`.

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
        path = checkpoint.folder / VOCABULARY_FILE
        self.vocabulary = _vocabulary(path, config.vocab_size)
        self.max_residues = MAX_RESIDUES
        self.objective = "none"
        self.mask_id = None
        letters = {
            letter: self.vocabulary[letter if letter in AMINO_ACIDS else "X"] for letter in AMINO_ACIDS + "XBOUZ"
        }
        alphabet = Alphabet(letters, before=(), after=(self.vocabulary["</s>"],))
        super().__init__(name, revision, alphabet, _T5Network(config, checkpoint))


class _T5Network(Network):
    def __init__(self, config: Config, checkpoint: Checkpoint) -> None:
        self.num_layers = config.num_layers
        self.d_model = config.d_model
        self._config = config
        # The deviations are those of `_init_weights` of transformers (factor 1).
        self._embedding = checkpoint.place(
            checkpoint.tensor("shared.weight", config.vocab_size, config.d_model, std=1.0)
        )
        self.inverse_frequencies = self._embedding.new_empty(0)
        self._bias = checkpoint.place(
            checkpoint.tensor(
                "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                config.relative_attention_num_buckets,
                config.num_heads,
                std=config.d_model**-0.5,
            )
        )
        self._blocks = [_read_block(checkpoint, f"encoder.block.{i}", config) for i in range(self.num_layers)]
        self._final_norm = checkpoint.place(checkpoint.tensor("encoder.final_layer_norm.weight", self.d_model))

    def embed(self, tokens: Tokens) -> Tensor:
        """See `Network.embed`."""
        return self._embedding[tokens.ids.to(self._embedding.device)]

    def block(self, index: int, hidden: Tensor, layout: Layout, tap: Tap = no_tap) -> Tensor:
        """See `Network.block`."""
        block = self._blocks[index]
        hidden = hidden + tap(ATTENTION, self._attention(block, hidden, layout))
        wide = linear(self._norm(hidden, block.mlp_norm), block.up, None).relu_()
        return hidden + tap(MLP, linear(wide, block.down, None))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """See `Network.final_norm`."""
        return self._norm(hidden, self._final_norm)

    def _attention(self, block: _Block, hidden: Tensor, layout: Layout) -> Tensor:
        config = self._config
        qkv = linear(self._norm(hidden, block.attention_norm), block.qkv, None)
        query, key, value = qkv.view(-1, 3, config.num_heads, config.d_kv).unbind(1)
        # T5 does not scale the scores: its initialisation does.
        attended = attend(query, key, value, layout, bias=self._relative_bias)
        return linear(attended, block.out, None)

    def _relative_bias(self, length: int) -> Tensor:
        """[heads, L, L], a function of key position minus query position."""
        config = self._config
        distances = _buckets(length, config.relative_attention_num_buckets, config.relative_attention_max_distance).to(
            self._bias.device
        )
        by_distance = self._bias[distances].T.contiguous()  # [heads, 2L - 1], from -(L - 1) to L - 1
        return by_distance.unfold(1, length, 1).flip(1)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        mean_square = hidden.square().mean(dim=-1, keepdim=True)
        return hidden * torch.rsqrt(mean_square + self._config.layer_norm_epsilon) * weight


def _buckets(length: int, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance key - query from -(L - 1) to L - 1, int64 [2L - 1] (Raffel et al. 2020, section 2.1).

    Half of the buckets are for keys after the query. Of a half, one half holds one distance each and the other
    logarithmically wider ranges up to `max_distance`.
    """
    distance = torch.arange(1 - length, length)
    half = num_buckets // 2
    exact = half // 2
    far = distance.abs()
    # In fp32 and in this order of operations as in the library: at the edge of a bucket rounding decides.
    wider = exact + (torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)).to(
        torch.int64
    )
    bucket = torch.where(far < exact, far, wider.clamp(max=half - 1))
    return bucket + (distance > 0) * half


def _vocabulary(path: Path, vocab_size: int) -> dict[str, int]:
    if not path.is_file():
        raise UserError(
            f"'{path.parent}' holds no {VOCABULARY_FILE}, which numbers ProtT5's tokens",
            fix="copy it from the checkpoint's repository",
        )
    pieces = read_pieces(path)
    ids = {piece: index for index, piece in enumerate(pieces)}
    # "A" inside a word, should there be such a piece, is not what a residue is read as.
    vocabulary = ids | {piece.removeprefix(WORD): index for piece, index in ids.items() if piece.startswith(WORD)}
    missing = [token for token in (*AMINO_ACIDS, "X", "</s>") if token not in vocabulary]
    if missing or len(pieces) > vocab_size:
        raise DataError(
            f"the vocabulary lacks {', '.join(missing)}" if missing else "the vocabulary is larger than the embedding",
            where=str(path),
            fix="use the vocabulary of a ProtT5 checkpoint",
        )
    return vocabulary


def _read_block(checkpoint: Checkpoint, prefix: str, config: Config) -> _Block:
    d, inner = config.d_model, config.num_heads * config.d_kv
    attention, dense = f"{prefix}.layer.0.SelfAttention", f"{prefix}.layer.1.DenseReluDense"
    read = checkpoint.tensor
    query = read(f"{attention}.q.weight", inner, d, std=(d * config.d_kv) ** -0.5)
    key, value = (read(f"{attention}.{name}.weight", inner, d, std=d**-0.5) for name in "kv")
    return _Block(
        attention_norm=checkpoint.place(read(f"{prefix}.layer.0.layer_norm.weight", d)),
        qkv=checkpoint.matrix(torch.cat([query, key, value])),
        out=checkpoint.matrix(read(f"{attention}.o.weight", d, inner, std=inner**-0.5)),
        mlp_norm=checkpoint.place(read(f"{prefix}.layer.1.layer_norm.weight", d)),
        up=checkpoint.matrix(read(f"{dense}.wi.weight", config.d_ff, d, std=d**-0.5)),
        down=checkpoint.matrix(read(f"{dense}.wo.weight", d, config.d_ff, std=config.d_ff**-0.5)),
    )


def _read_config(checkpoint: Checkpoint) -> Config:
    folder, raw = checkpoint.folder, checkpoint.config
    with reading_config(folder):
        config = Config(
            vocab_size=int(raw["vocab_size"]),
            d_model=int(raw["d_model"]),
            d_kv=int(raw["d_kv"]),
            d_ff=int(raw["d_ff"]),
            num_layers=int(raw["num_layers"]),
            num_heads=int(raw["num_heads"]),
            relative_attention_num_buckets=int(raw["relative_attention_num_buckets"]),
            relative_attention_max_distance=int(raw.get("relative_attention_max_distance", 128)),
            layer_norm_epsilon=float(raw["layer_norm_epsilon"]),
        )
        feed_forward = str(raw.get("feed_forward_proj", "relu"))
    expected = {"model_type": "t5", "feed_forward_proj": "relu"}
    found = {"model_type": raw.get("model_type"), "feed_forward_proj": feed_forward}
    refuse_unless(folder, found, expected, "of ProtT5's architecture")
    return config
