"""Tiny random models of the real classes of transformers, saved as checkpoints, and what those classes compute.

The classes, their padding and their attention masks are the library's own: nothing here repeats a forward.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    EsmcConfig,
    EsmcForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.esm.configuration_esm import get_default_vocab_list

from plmsae.plms.base import ATTENTION, MLP, ProteinLM, Tokens

NUM_LAYERS = 3
D_MODEL = 24


@dataclass(frozen=True)
class Library:
    """A model of transformers and where its hooks are.

    Attributes:
        model: The model, in evaluation mode.
        pad_id: Its padding token.
        modules: Hook -> layer (from 1) -> the module whose output it is.
        scale: What the library divides such an output by before it adds it to the residual stream.
        call: Runs it on ids and attention mask; returns hidden states and logits or None.
    """

    model: PreTrainedModel
    pad_id: int
    modules: dict[str, Callable[[int], nn.Module]]
    scale: float = 1.0
    call: Callable[[Tensor, Tensor], tuple[tuple[Tensor, ...], Tensor | None]] | None = None

    def run(
        self, tokens: Tokens, change: tuple[str, int, Callable[[Tensor], Tensor]] | None = None
    ) -> tuple[dict[tuple[str, int], Tensor], Tensor | None]:
        """Hidden states by (hook, layer) and logits, at the residue rows.

        Args:
            tokens: A batch of ours; it is padded here.
            change: Hook, layer and a function of what is added to the stream there, applied at residues only.
        """
        lengths = tokens.lengths.tolist()
        ids = pad_sequence(tokens.ids.split(lengths), batch_first=True, padding_value=self.pad_id)
        residues = pad_sequence(tokens.residues.split(lengths), batch_first=True)
        mask = pad_sequence(torch.ones(int(tokens.lengths.sum())).long().split(lengths), batch_first=True)
        found: dict[tuple[str, int], Tensor] = {}

        def watch(hook: str, layer: int) -> Callable[..., object]:
            def after(module: nn.Module, inputs: object, output: object) -> object:
                added = output[0] if isinstance(output, tuple) else output
                found[hook, layer] = added[residues] / self.scale
                if change is None or change[:2] != (hook, layer):
                    return None
                new = torch.where(residues[..., None], change[2](added / self.scale) * self.scale, added)
                return (new, *output[1:]) if isinstance(output, tuple) else new

            return after

        with torch.no_grad(), ExitStack() as stack:
            for hook, module in self.modules.items():
                for layer in range(1, NUM_LAYERS + 1):
                    handle = module(layer - 1).register_forward_hook(watch(hook, layer))
                    stack.callback(handle.remove)
            if self.call is not None:
                states, logits = self.call(ids, mask)
            else:
                out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
                states, logits = out.hidden_states, getattr(out, "logits", None)
        assert len(states) == NUM_LAYERS + 1
        found |= {("residual", layer): state[residues] for layer, state in enumerate(states)}
        found["embedding", 0], found["final_norm", NUM_LAYERS] = found["residual", 0], found["residual", NUM_LAYERS]
        return found, None if logits is None else logits[residues]


@dataclass(frozen=True)
class Case:
    """A family: our model and the library's, of one checkpoint."""

    plm: ProteinLM
    library: Library
    folder: Path
    letters: str


def randomise(model: nn.Module, seed: int = 0, size: float = 0.3) -> None:
    """Make every tensor matter: large weights, biases and norms that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1 and name.endswith("weight"):
                parameter += 1


def _esm_config(**changes: object) -> EsmConfig:
    settings: dict[str, object] = {
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": D_MODEL,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "emb_layer_norm_before": False,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 204,
    }
    return EsmConfig(**{**settings, **changes})


def _esm_modules(encoder: Callable[[], nn.Module]) -> dict[str, Callable[[int], nn.Module]]:
    return {
        ATTENTION: lambda i: encoder().layer[i].attention.output.dense,
        MLP: lambda i: encoder().layer[i].output.dense,
    }


def esm2(folder: Path) -> Library:
    model = EsmForMaskedLM(_esm_config())
    randomise(model)
    model.save_pretrained(folder)
    return Library(model.eval(), 1, _esm_modules(lambda: model.esm.encoder))


def esmc(folder: Path, intermediate_size: int = 40) -> Library:
    model = EsmcForMaskedLM(
        EsmcConfig(
            hidden_size=D_MODEL,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=3,
            intermediate_size=intermediate_size,
            max_position_embeddings=202,
        )
    )
    randomise(model)
    model.save_pretrained(folder)
    modules = {ATTENTION: lambda i: model.esmc.layers[i].self_attn, MLP: lambda i: model.esmc.layers[i].mlp}
    return Library(model.eval(), 1, modules, scale=model.esmc.layers[0].scaling_factor)


def esmfold(folder: Path) -> Library:
    structure = {
        "sequence_dim": 32,
        "pairwise_dim": 16,
        "ipa_dim": 8,
        "resnet_dim": 16,
        "num_heads_ipa": 4,
        "num_qk_points": 2,
        "num_v_points": 2,
        "num_blocks": 1,
        "num_resnet_blocks": 1,
    }
    trunk = {
        "num_blocks": 1,
        "sequence_state_dim": 64,
        "pairwise_state_dim": 32,
        "sequence_head_width": 16,
        "pairwise_head_width": 8,
        "position_bins": 8,
        "max_recycles": 1,
        "chunk_size": None,
        "structure_module": structure,
    }
    fold = {"fp16_esm": True, "embed_aa": True, "lddt_head_hid_dim": 16, "trunk": trunk}
    config = _esm_config(is_folding_model=True, vocab_list=get_default_vocab_list(), esmfold_config=fold)
    model = EsmForProteinFolding(config)
    assert next(model.esm.parameters()).dtype == torch.float16
    randomise(model.esm)
    model.save_pretrained(folder)
    model = model.eval()
    model.esm.float()  # the arithmetic of our model, on the checkpoint's rounded values

    def call(ids: Tensor, mask: Tensor) -> tuple[tuple[Tensor, ...], None]:
        out = model.esm(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return out.hidden_states, None

    return Library(model, 1, _esm_modules(lambda: model.esm.encoder), call=call)


# In an order of its own, so that a test passes only if the ids come from the file.
T5_PIECES = ("<pad>", "</s>", "<unk>", *(f"\u2581{letter}" for letter in "XWYACDEFGHIKLMNPQRSTVBOUZ"), "<extra_id_0>")


def spiece_model(pieces: tuple[str, ...]) -> bytes:
    """A SentencePiece model of these pieces: field 1 each, with text (field 1) and score (field 2, float)."""
    message = b""
    for piece in pieces:
        text = piece.encode()
        inner = b"\x0a" + bytes([len(text)]) + text + b"\x15" + bytes(4)
        message += b"\x0a" + bytes([len(inner)]) + inner
    return message + b"\x12\x02\x18\x01"  # trainer_spec, to be skipped


def prot_t5(folder: Path) -> Library:
    config = T5Config(
        vocab_size=32,
        d_model=D_MODEL,
        d_kv=10,
        d_ff=40,
        num_layers=NUM_LAYERS,
        num_heads=3,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=40,
        dropout_rate=0.0,
    )
    model = T5EncoderModel(config)
    randomise(model)
    model.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(spiece_model(T5_PIECES))
    modules = {
        ATTENTION: lambda i: model.encoder.block[i].layer[0].SelfAttention.o,
        MLP: lambda i: model.encoder.block[i].layer[1].DenseReluDense,
    }
    return Library(model.eval(), 0, modules)


def codegen(folder: Path, heads: int = 4) -> Library:
    config = CodeGenConfig(
        vocab_size=32,
        n_positions=201,
        n_ctx=201,
        n_embd=D_MODEL * 2 if heads == 8 else D_MODEL,
        n_layer=NUM_LAYERS,
        n_head=heads,
        rotary_dim=4,
        n_inner=40,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = CodeGenForCausalLM(config)
    randomise(model)
    model.save_pretrained(folder)
    modules = {ATTENTION: lambda i: model.transformer.h[i].attn, MLP: lambda i: model.transformer.h[i].mlp}
    return Library(model.eval(), 0, modules)


def progen2(folder: Path) -> Library:
    """The same class under ProGen2's own configuration keys, its query, value and key rows dealt to eight groups.

    `modeling_progen.py` of salesforce/progen views the projection as [8, 3 * local] with [query | value | key] in each
    group and heads in order; CodeGen does so with 4.
    """
    library = codegen(folder, heads=8)
    config = json.loads((folder / "config.json").read_text())
    d = config["n_embd"]
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("qkv_proj.weight"):
            rows = {(group, kind, row): [] for group in range(8) for kind in range(3) for row in range(d // 8)}
            for group in range(4):
                for kind in range(3):
                    for row in range(d // 4):
                        whole = group * (d // 4) + row  # row of the whole query, value or key
                        source = group * 3 * (d // 4) + kind * (d // 4) + row
                        rows[whole // (d // 8), kind, whole % (d // 8)] = tensor[source]
            tensors[name] = torch.stack([rows[key] for key in sorted(rows)])
    save_file(tensors, folder / "model.safetensors")
    renamed = {"n_embd": "embed_dim", "vocab_size": "vocab_size_emb"}
    config = {renamed.get(key, key): value for key, value in config.items()}
    config |= {"model_type": "progen", "architectures": ["ProGenForCausalLM"], "vocab_size_lm_head": 32}
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_progen.ProGenForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_progen.py").write_text("raise SystemExit('code of a checkpoint was run')\n")
    return library


FAMILIES: dict[str, tuple[Callable[[Path], Library], str]] = {
    "esm2": (esm2, "LAGVSERTIDPKQNFYMHWCXBUZO"),
    "esmc": (esmc, "LAGVSERTIDPKQNFYMHWCXBUZO"),
    "esmfold": (esmfold, "LAGVSERTIDPKQNFYMHWCX"),
    "prot_t5": (prot_t5, "LAGVSERTIDPKQNFYMHWCX"),
    "codegen": (codegen, "LAGVSERTIDPKQNFYMHWCXBUZO"),
    "progen2": (progen2, "LAGVSERTIDPKQNFYMHWCXBUZO"),
}
