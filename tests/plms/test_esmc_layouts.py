"""ESM C as its repositories hold it besides transformers' own layout (`convert_esmc_checkpoint.py` of transformers)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from plmsae.errors import DataError
from plmsae.plms import load_plm
from plmsae.plms.base import Place
from tests.plms import tiny

LAYERS = range(tiny.NUM_LAYERS)
HEAD = {"dense": "0", "layer_norm": "2", "decoder": "3"}


def fused(tensors, prefix="esmc."):
    """The layout of TransformerEngine: fused projections, norms inside them, states that are not weights."""
    found = {f"{prefix}embed.weight": tensors["esmc.embed_tokens.weight"]}
    found[f"{prefix}transformer.norm.weight"] = tensors["esmc.norm.weight"]
    for i in LAYERS:
        old, new = f"esmc.layers.{i}", f"{prefix}transformer.blocks.{i}"
        query, key, value = (tensors[f"{old}.self_attn.{part}_proj.weight"] for part in "qkv")
        found[f"{new}.attn.layernorm_qkv.weight"] = torch.cat([query, key, value])
        found[f"{new}.attn.layernorm_qkv._extra_state"] = torch.zeros(5, dtype=torch.uint8)
        found[f"{new}.attn.out_proj.weight"] = tensors[f"{old}.self_attn.o_proj.weight"]
        for part in "qk":
            found[f"{new}.attn.{part}_ln.weight"] = tensors[f"{old}.self_attn.{part}_norm.weight"]
        gate, up = (tensors[f"{old}.mlp.{part}_proj.weight"] for part in ("gate", "up"))
        found[f"{new}.ffn.fc1_weight"] = torch.cat([gate, up])
        found[f"{new}.ffn.fc2_weight"] = tensors[f"{old}.mlp.down_proj.weight"]
        for part in ("weight", "bias"):
            found[f"{new}.attn.layernorm_qkv.layer_norm_{part}"] = tensors[f"{old}.input_layernorm.{part}"]
            found[f"{new}.ffn.layer_norm_{part}"] = tensors[f"{old}.post_attention_layernorm.{part}"]
    for name, number in HEAD.items():
        for part in ("weight", "bias"):
            found[f"lm_head.{number}.{part}"] = tensors[f"lm_head.{name}.{part}"]
    return found


def first_release(tensors):
    """The layout of the first release: the same tensors in `nn.Sequential`s, the head under another name."""
    renamed = {
        "attn.layernorm_qkv.weight": "attn.layernorm_qkv.1.weight",
        "attn.layernorm_qkv.layer_norm_": "attn.layernorm_qkv.0.",
        "ffn.layer_norm_": "ffn.0.",
        "ffn.fc1_weight": "ffn.1.weight",
        "ffn.fc2_weight": "ffn.3.weight",
        "lm_head.": "sequence_head.",
    }
    found = {}
    for name, tensor in fused(tensors, prefix="").items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


@pytest.fixture
def folder(tmp_path):
    tiny.esmc(tmp_path, intermediate_size=256)  # the width that follows from the one of the model
    return tmp_path


def rewrite(folder, change):
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in change(load_file(path)).items()}, path)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    legacy = {"d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    kept = {"model_type": "esmc", "architectures": ["ESMCForMaskedLM"], "vocab_size": 64, "mask_token_id": 32}
    path.write_text(json.dumps({**kept, **{old: config[new] for old, new in legacy.items()}}))


@pytest.mark.parametrize("layout", [fused, first_release])
@pytest.mark.parametrize("control", ["", "?permuted=2", "?random=2"])
def test_every_layout_is_the_same_model(folder, layout, control):
    places = [Place(0), Place(2, "attention"), Place(2, "mlp"), Place(3)]
    before = load_plm(f"{folder}{control}")
    tokens = before.tokenize(["ACDEFGHIKLMNPQRSTVWY", "MK"])
    expected = [*before.hidden_at(tokens, places), before.logits(tokens)]
    rewrite(folder, layout)
    after = load_plm(f"{folder}{control}")
    assert after.max_residues == 2046
    assert all(map(torch.equal, [*after.hidden_at(tokens, places), after.logits(tokens)], expected))


def test_a_layout_that_is_not_known_is_an_error_and_not_random_weights(folder):
    rewrite(folder, lambda tensors: {f"model.{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(DataError, match=r"the weights lack 'esmc.embed_tokens.weight'"):
        load_plm(str(folder))
