"""The registry of model families: which file serves which checkpoints."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmsae.errors import DataError, UserError

if TYPE_CHECKING:
    from plmsae.plms.base import ProteinLM
    from plmsae.plms.checkpoint import Checkpoint


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        module: Module of this package.
        class_name: Its class; called with name, checkpoint and revision.
        model_type: `model_type` of the configuration, with `-folding` after it for a folding model.
        hub: Repositories of the Hugging Face hub.
        files: Files needed besides configuration and weights.
        pickled: Whether `pytorch_model.bin` may be read, because the publisher offers nothing else.
        renamed: (pattern, replacement) for tensor names of other layouts, applied in this order.
        packed: (pattern, names) for tensors that are several, one above the other in equal shares, after renaming.
    """

    module: str
    class_name: str
    model_type: str
    hub: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    pickled: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    packed: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def build(self) -> Callable[[str, Checkpoint, str], ProteinLM]:
        """The class."""
        found: Callable[[str, Checkpoint, str], ProteinLM] = getattr(
            importlib.import_module(f"plmsae.plms.{self.module}"), self.class_name
        )
        return found

    def names(self, name: str) -> tuple[str, ...]:
        """What a tensor of a checkpoint is called by the class of transformers; several names for a packed one."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        for pattern, parts in self.packed:
            if re.search(pattern, name):
                return tuple(re.sub(pattern, part, name) for part in parts)
        return (name,)


# save_pretrained of transformers 5 writes some LayerNorms of ESM under the names of TensorFlow's.
_ESM_RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))

# Besides the layout of transformers, repositories and revisions of ESM C come in the one of TransformerEngine (fused
# query, key, value and gate, up) and in the one of the first release, with or without the prefix `esmc.`
# (`convert_esmc_checkpoint.py` of transformers; github.com/Biohub/esm issues 333 and 405).
_ESMC_RENAMED = (
    (r"^(embed|transformer)\.", r"esmc.\1."),
    (r"^esmc\.embed\.", "esmc.embed_tokens."),
    (r"^esmc\.transformer\.blocks\.", "esmc.layers."),
    (r"^esmc\.transformer\.norm\.", "esmc.norm."),
    (r"\.attn\.layernorm_qkv\.(0\.|layer_norm_)", ".input_layernorm."),
    (r"\.attn\.layernorm_qkv\.1\.", ".attn.layernorm_qkv."),
    (r"\.attn\.([qk])_ln\.", r".self_attn.\1_norm."),
    (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.ffn\.(0\.|layer_norm_)", ".post_attention_layernorm."),
    (r"\.ffn\.1\.weight$", ".ffn.fc1_weight"),
    (r"\.ffn\.(3\.|fc2_)weight$", ".mlp.down_proj.weight"),
    (r"^sequence_head\.", "lm_head."),
    (r"^lm_head\.0\.", "lm_head.dense."),
    (r"^lm_head\.2\.", "lm_head.layer_norm."),
    (r"^lm_head\.3\.", "lm_head.decoder."),
)
_ESMC_PACKED = (
    (r"attn\.layernorm_qkv\.weight$", tuple(f"self_attn.{part}_proj.weight" for part in "qkv")),
    (r"ffn\.fc1_weight$", ("mlp.gate_proj.weight", "mlp.up_proj.weight")),
)

FAMILIES = (
    Family(
        "esm2",
        "Esm2",
        "esm",
        hub=(
            "facebook/esm2_t6_8M_UR50D",
            "facebook/esm2_t12_35M_UR50D",
            "facebook/esm2_t30_150M_UR50D",
            "facebook/esm2_t33_650M_UR50D",
            "facebook/esm2_t36_3B_UR50D",
            "facebook/esm2_t48_15B_UR50D",
        ),
        renamed=_ESM_RENAMED,
    ),
    Family(
        "esmc",
        "EsmC",
        "esmc",
        hub=("biohub/ESMC-300M", "biohub/ESMC-600M", "biohub/ESMC-6B"),
        renamed=_ESMC_RENAMED,
        packed=_ESMC_PACKED,
    ),
    Family("esmfold", "EsmFoldLM", "esm-folding", hub=("facebook/esmfold_v1",), pickled=True, renamed=_ESM_RENAMED),
    Family(
        "prot_t5",
        "ProtT5",
        "t5",
        hub=("Rostlab/prot_t5_xl_half_uniref50-enc", "Rostlab/prot_t5_xl_uniref50"),
        files=("spiece.model",),
        pickled=True,
    ),
    Family(
        "progen2",
        "ProGen2",
        "progen",
        hub=(
            "hugohrban/progen2-small",
            "hugohrban/progen2-medium",
            "hugohrban/progen2-base",
            "hugohrban/progen2-large",
            "hugohrban/progen2-xlarge",
        ),
    ),
)
HUB = {repository: family for family in FAMILIES for repository in family.hub}


def family_of(config: Mapping[str, Any], where: Path | str) -> Family:
    """The family of a checkpoint.

    Args:
        config: Contents of its `config.json`.
        where: For messages.

    Raises:
        UserError: No family has its `model_type`.
        DataError: There is no `model_type`.
    """
    if "model_type" not in config:
        raise DataError("the PLM's config is not valid", where=f"{where}: no 'model_type'", fix="restore the file")
    model_type = config.get("model_type")
    if config.get("is_folding_model"):
        model_type = f"{model_type}-folding"
    if model_type == "codegen":  # transformers' class of ProGen2's architecture
        model_type = "progen"
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(sorted(family.model_type for family in FAMILIES))
    raise UserError(
        f"no PLM family of plmsae reads checkpoints with model_type = {config.get('model_type')!r}",
        where=str(where),
        fix=f"use one of these: {known} (docs/how-to/plms.md says how to add a family)",
    )
