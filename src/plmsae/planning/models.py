"""Dimensions of protein language models, without their weights: the known ones, and any folder with a `config.json`.

Sources: the configurations published with the checkpoints (facebook/esm2_*, facebook/esmfold_v1, biohub/ESMC-*,
Rostlab/prot_t5_xl_*, hugohrban/progen2-*); the tests build each from transformers' class of the family and count its
parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plmsae.errors import DataError, UserError, did_you_mean

BUNDLED = "esm_small"
_SMALL = Path(__file__).parents[1] / "plms" / "small"


@dataclass(frozen=True)
class Transformer:
    """A stack of equal blocks: attention, then a feed-forward network, each beside a residual stream.

    Attributes:
        name: Name of the model.
        family: `esm` (ESM-2), `esmc`, `t5` (the encoder) or `progen` (ProGen2, causal).
        layers: Number of blocks, L.
        d_model: Width of the residual stream, d.
        heads: Attention heads.
        head_dim: Width of a head; heads x head_dim is the attention's inner width, a.
        ffn: Inner width of the feed-forward network, f.
        vocabulary: Number of tokens.
        specials: Special tokens that are added to a sequence.
        max_residues: The longest sequence that this pipeline gives it.
    """

    name: str
    family: str
    layers: int
    d_model: int
    heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    specials: int
    max_residues: int

    @property
    def attention(self) -> int:
        """Inner width of the attention, a."""
        return self.heads * self.head_dim

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network has a third matrix, a gate."""
        return self.family == "esmc"


def _esm2(name: str, layers: int, d_model: int, heads: int) -> Transformer:
    return Transformer(name, "esm", layers, d_model, heads, d_model // heads, 4 * d_model, 33, 2, 1022)


def _esmc(name: str, layers: int, d_model: int, heads: int) -> Transformer:
    # SwiGLU of width 8/3 d, rounded up to a multiple of 256 (the `esm` package); positions up to 2,048 tokens.
    ffn = -(-(8 * d_model) // (3 * 256)) * 256
    return Transformer(name, "esmc", layers, d_model, heads, d_model // heads, ffn, 64, 2, 2046)


def _progen2(name: str, layers: int, d_model: int, heads: int, positions: int) -> Transformer:
    return Transformer(
        name, "progen", layers, d_model, heads, d_model // heads, 4 * d_model, 32, 1, positions - 1
    )  # fmt: skip


_KNOWN = {
    model.name: model
    for model in (
        _esm2("facebook/esm2_t6_8M_UR50D", 6, 320, 20),
        _esm2("facebook/esm2_t12_35M_UR50D", 12, 480, 20),
        _esm2("facebook/esm2_t30_150M_UR50D", 30, 640, 20),
        _esm2("facebook/esm2_t33_650M_UR50D", 33, 1280, 20),
        _esm2("facebook/esm2_t36_3B_UR50D", 36, 2560, 40),
        _esm2("facebook/esm2_t48_15B_UR50D", 48, 5120, 40),
        _esm2("facebook/esmfold_v1", 36, 2560, 40),  # its language model: ESM-2 3B
        _esmc("biohub/ESMC-300M", 30, 960, 15),
        _esmc("biohub/ESMC-600M", 36, 1152, 18),
        _esmc("biohub/ESMC-6B", 80, 2560, 40),
        Transformer("Rostlab/prot_t5_xl_half_uniref50-enc", "t5", 24, 1024, 32, 128, 16384, 128, 1, 4096),
        Transformer("Rostlab/prot_t5_xl_uniref50", "t5", 24, 1024, 32, 128, 16384, 128, 1, 4096),
        _progen2("hugohrban/progen2-small", 12, 1024, 16, 1024),
        _progen2("hugohrban/progen2-medium", 27, 1536, 16, 1024),
        _progen2("hugohrban/progen2-base", 27, 1536, 16, 2048),
        _progen2("hugohrban/progen2-large", 32, 2560, 32, 1024),
        _progen2("hugohrban/progen2-xlarge", 32, 4096, 16, 1024),
    )
}


def known_names() -> tuple[str, ...]:
    """Names that `transformer` knows without a folder."""
    return (BUNDLED, *_KNOWN)


def transformer(name: str, root: Path = Path()) -> Transformer:
    """The dimensions of a model.

    Args:
        name: A known name, or the path of a checkpoint folder, relative to `root`; a control of either
            (`NAME?permuted=SEED`) has the dimensions of its model.
        root: Folder that a relative path starts from.

    Raises:
        UserError: The name is not known and no folder, or the folder's family is not known.
        DataError: The folder's `config.json` is not valid.
    """
    base = name if (root / name).is_dir() else name.partition("?")[0]
    if base in _KNOWN:
        return replace(_KNOWN[base], name=name)
    folder = _SMALL if base == BUNDLED else root / Path(base).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"the dimensions of PLM '{name}' are not known",
            where="extract_activations.plm",
            fix=f"{did_you_mean(name, known_names())} A folder with a config.json works too.",
        )
    return _from_folder(name, folder)


def _from_folder(name: str, folder: Path) -> Transformer:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"'{folder}' holds no config.json", fix="name a folder written by save_pretrained")
    try:
        raw: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        family = str(raw["model_type"])
        if family not in _READERS:
            raise UserError(
                f"'{folder}' is of the family '{family}', whose cost is not known here",
                where=str(path),
                fix=f"the families are {', '.join(sorted(_READERS))}",
            )
        found = _READERS[family](name, raw)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise DataError("the PLM's config is not valid", where=f"{path}: {error}", fix="restore the file") from error
    if min(found.layers, found.d_model, found.heads, found.head_dim, found.ffn, found.vocabulary) < 1:
        raise DataError("the PLM's config holds a width below 1", where=str(path), fix="restore the file")
    return found


def _read_esm(name: str, raw: Mapping[str, Any]) -> Transformer:
    d_model, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
    return Transformer(
        name, "esm", int(raw["num_hidden_layers"]), d_model, heads, d_model // heads, int(raw["intermediate_size"]),
        int(raw["vocab_size"]), 2, int(raw["max_position_embeddings"]) - 4,
    )  # fmt: skip


def _read_esmc(name: str, raw: Mapping[str, Any]) -> Transformer:
    d_model, heads = int(raw["hidden_size"]), int(raw["num_attention_heads"])
    return Transformer(
        name, "esmc", int(raw["num_hidden_layers"]), d_model, heads, int(raw.get("head_dim") or d_model // heads),
        int(raw["intermediate_size"]), int(raw["vocab_size"]), 2, int(raw["max_position_embeddings"]) - 2,
    )  # fmt: skip


def _read_t5(name: str, raw: Mapping[str, Any]) -> Transformer:
    if str(raw.get("feed_forward_proj", "relu")).startswith("gated"):
        raise ValueError("feed_forward_proj is gated; ProtT5's is not")
    return Transformer(
        name, "t5", int(raw["num_layers"]), int(raw["d_model"]), int(raw["num_heads"]), int(raw["d_kv"]),
        int(raw["d_ff"]), int(raw["vocab_size"]), 1, 4096,
    )  # fmt: skip


def _read_progen(name: str, raw: Mapping[str, Any]) -> Transformer:
    d_model, heads = int(raw["n_embd"]), int(raw["n_head"])
    return Transformer(
        name, "progen", int(raw["n_layer"]), d_model, heads, d_model // heads, int(raw.get("n_inner") or 4 * d_model),
        int(raw["vocab_size"]), 1, int(raw["n_positions"]) - 1,
    )  # fmt: skip


_READERS: Mapping[str, Callable[[str, Mapping[str, Any]], Transformer]] = {
    "esm": _read_esm,
    "codegen": _read_progen,
    "esmc": _read_esmc,
    "progen": _read_progen,
    "t5": _read_t5,
}
