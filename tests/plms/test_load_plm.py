"""Names, folders, revisions, and checkpoints that are broken in every way that a user meets."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EsmForMaskedLM

from plmsae.errors import DataError, TryAgainError, UserError
from plmsae.plms import KNOWN, load_plm
from tests.plms.conftest import BUNDLED_FOLDER, Pair


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "lm")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_bundled_lm_carries_the_sha256_of_its_weights():
    plm = load_plm("esm_small")
    sha256 = hashlib.sha256((BUNDLED_FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert (plm.name, plm.revision) == ("esm_small", f"sha256:{sha256}")
    assert load_plm("esm_small", plm.revision).revision == plm.revision


def test_revision_of_other_weights_is_refused_and_both_are_named():
    with pytest.raises(UserError, match=r"has revision sha256:\w+, not sha256:abc"):
        load_plm("esm_small", "sha256:abc")


def test_a_folder_is_found_relative_to_the_root(folder):
    plm = load_plm("lm", root=folder.parent)
    assert plm.name == "lm"
    assert torch.equal(plm.hidden(plm.tokenize(["ACD"]), 2), load_plm(str(folder)).hidden(plm.tokenize(["ACD"]), 2))


def test_unknown_name():
    with pytest.raises(UserError, match="unknown PLM 'esm_smal'") as caught:
        load_plm("esm_smal")
    assert "did you mean 'esm_small'?" in str(caught.value)
    with pytest.raises(UserError, match=r"did you mean 'facebook/esm2_t33_650M_UR50D'"):
        load_plm("facebook/esm2_t33_650M_UR5D")
    assert len(KNOWN) == len(set(KNOWN)) == 18


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_plm(str(tmp_path / "nothing"))


def test_hub_without_network_says_try_again(monkeypatch, tmp_path):
    # tests/conftest.py switches look-ups on the hub off, which is how an unreachable one behaves after its retries.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TryAgainError, match=r"cannot be reached(.|\n)*facebook/esm2_t6_8M_UR50D") as caught:
        load_plm("facebook/esm2_t6_8M_UR50D", "b" * 40)
    assert caught.value.exit_code == 75


def test_sharded_checkpoint_equals_the_single_file(folder):
    whole = load_plm(str(folder))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in shards.items():
        save_file({name: tensors[name] for name in chosen}, folder / file)
    index = {"weight_map": {name: file for file, chosen in shards.items() for name in chosen}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    sharded = load_plm(str(folder))
    tokens = whole.tokenize(["ACDEFG"])
    assert torch.equal(sharded.logits(tokens), whole.logits(tokens))
    assert sharded.revision != whole.revision
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"'model-00002-of-00002.safetensors' is missing"):
        load_plm(str(folder))


def test_shard_outside_the_folder_is_refused(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(DataError, match="is missing"):
        load_plm(str(folder))


def test_stored_rotary_frequencies_are_used(folder):
    """Older checkpoints hold frequencies that were rounded in training; transformers keeps them too."""
    usual = load_plm(str(folder))
    frequencies = 2.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    keys = [f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq" for i in range(3)]
    edit_weights(folder, lambda tensors: tensors.update({key: frequencies.half() for key in keys}))
    plm = load_plm(str(folder))
    tokens = plm.tokenize(["ACDEFGHIKLMNPQRSTVWY"])
    _, expected = Pair(plm, EsmForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()).expected(tokens)
    assert torch.allclose(plm.logits(tokens), expected, atol=1e-4)
    assert (plm.logits(tokens) - usual.logits(tokens)).abs().max() > 0.1


def test_weights_only_as_pickle_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no model.safetensors(.|\n)*pickled weights are not loaded"):
        load_plm(str(folder))


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"'model.safetensors' is corrupted"):
        load_plm(str(folder))


def test_missing_tensor(folder):
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.dense.weight"))
    with pytest.raises(DataError, match=r"lack 'lm_head.dense.weight'"):
        load_plm(str(folder))


def test_wrong_shape(folder):
    edit_config(folder, intermediate_size=48)
    with pytest.raises(DataError, match=r"has shape \[40, 24\], not \[48, 24\]"):
        load_plm(str(folder))


def test_values_that_are_not_finite(folder):
    name = "esm.encoder.layer.1.output.dense.bias"

    def spoil(tensors):
        tensors[name][3] = float("nan")

    edit_weights(folder, spoil)
    with pytest.raises(DataError, match=rf"'{name}' holds values that are not finite"):
        load_plm(str(folder))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "bert"}, "no PLM family of plmsae reads checkpoints with model_type = 'bert'"),
        ({"position_embedding_type": "absolute"}, "not of ESM-2's architecture: position_embedding_type"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before = True, not False"),
        ({"vocab_size": 64}, "vocab_size = 64, not 33"),
        ({"vocab_list": ["A", "B"]}, "vocab_list = ['A', 'B'], not"),
        ({"num_attention_heads": 24}, "odd head width"),
    ],
)
def test_another_architecture(folder, changes, named):
    edit_config(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_plm(str(folder))
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"hidden_size": "wide"}'])
def test_malformed_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config(.|\n)*not valid"):
        load_plm(str(folder))


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config.json"):
        load_plm(str(folder))
