from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from plmsae.errors import UserError
from plmsae.plms import load_plm
from plmsae.plms.checkpoint import Checkpoint
from plmsae.plms.controls import Control, split_name
from plmsae.plms.families import family_of
from plmsae.registry.versions import registry_name
from tests.plms import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    tiny.esm2(folder)
    return folder


def hidden(name, layer=2, **kwargs):
    plm = load_plm(name, **kwargs)
    return plm.hidden(plm.tokenize(["ACDEFGHIKLMNPQRSTVWY"]), layer)


def test_every_tensor_of_the_permuted_control_holds_the_same_values_in_another_order(folder):
    trained = load_file(folder / "model.safetensors")
    names_of = family_of({"model_type": "esm"}, folder).names
    with Checkpoint(folder, names=names_of, control=Control("permuted", 3)) as checkpoint:
        names = [name for name in trained if "inv_freq" not in name]
        for name in names:
            permuted = checkpoint.tensor(*names_of(name), *trained[name].shape)
            assert permuted.shape == trained[name].shape
            assert torch.equal(permuted.flatten().sort().values, trained[name].flatten().sort().values)
            assert permuted.numel() == 1 or not torch.equal(permuted, trained[name]), name
        # Tensors of one shape are not permuted alike: where the largest value goes differs.
        places = set()
        for name in names:
            if trained[name].numel() == 24:
                at = checkpoint.tensor(*names_of(name), 24) == trained[name].max()
                places.add(int(at.nonzero()[0]) - int(trained[name].argmax()))
        assert len(places) > 5


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["permuted", "random"])
def test_a_control_of_any_family_is_a_model_like_another(family, kind, tmp_path):
    tiny.FAMILIES[family][0](tmp_path)
    plain, control = load_plm(str(tmp_path)), load_plm(f"{tmp_path}?{kind}=5")
    assert control.name == f"{tmp_path}?{kind}=5"
    tokens = plain.tokenize(["ACDEFGHIKLMNPQRSTVWY"])
    assert torch.equal(control.tokenize(["ACDEFGHIKLMNPQRSTVWY"]).ids, tokens.ids)
    for layer in (0, 2, 3):
        ours, theirs = control.hidden(tokens, layer), plain.hidden(tokens, layer)
        assert bool(ours.isfinite().all())
        assert (ours - theirs).abs().max() > 0.1
        assert torch.equal(ours, load_plm(f"{tmp_path}?{kind}=5").hidden(tokens, layer))
        assert not torch.equal(ours, load_plm(f"{tmp_path}?{kind}=6").hidden(tokens, layer))


def test_a_control_is_the_same_in_another_process(folder):
    program = (
        "import sys, hashlib, torch; torch.set_num_threads(1); from plmsae.plms import load_plm\n"
        "plm = load_plm(sys.argv[1]); rows = plm.hidden(plm.tokenize(['ACDEFGHIKLMNPQRSTVWY']), 2)\n"
        "print(hashlib.sha256(rows.numpy().tobytes()).hexdigest())"
    )
    name = f"{folder}?permuted=3"
    done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(hidden(name).numpy().tobytes()).hexdigest()


def test_random_weights_are_those_before_training(folder):
    with Checkpoint(folder, control=Control("random", 0)) as checkpoint:
        matrix = checkpoint.tensor("esm.encoder.layer.0.output.dense.weight", 24, 400)
        assert abs(float(matrix.std()) - 0.02) < 1e-3
        assert torch.equal(checkpoint.tensor("x.weight", 7), torch.ones(7))
        assert torch.equal(checkpoint.tensor("x.bias", 7), torch.zeros(7))
        assert abs(float(checkpoint.tensor("shared.weight", 90, 90, std=1.0).std()) - 1) < 0.05


def test_random_weights_need_the_configuration_alone(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert torch.equal(hidden(f"{tmp_path}?random=1"), hidden(f"{folder}?random=1"))
    with pytest.raises(UserError, match=r"holds no model.safetensors"):
        load_plm(f"{tmp_path}?permuted=1")


def test_a_control_of_a_bundled_and_a_relative_model(folder):
    assert load_plm("esm_small?permuted=0").revision == load_plm("esm_small").revision
    assert torch.equal(hidden(f"{folder.name}?random=1", root=folder.parent), hidden(f"{folder}?random=1"))


@pytest.mark.parametrize(
    "text", ["", "permuted", "permuted=", "permuted=-1", "permuted=x", "shuffled=1", "random=1&a=2"]
)
def test_what_is_not_a_control(text):
    with pytest.raises(UserError, match=r"is not a control of PLM 'esm_small'(.|\n)*permuted=SEED"):
        load_plm(f"esm_small?{text}")


def test_a_folder_whose_name_looks_like_a_control_is_a_folder(folder):
    (folder.parent / "lm?random=1").symlink_to(folder)
    assert torch.equal(hidden("lm?random=1", root=folder.parent), hidden(str(folder)))


def test_saes_of_controls_are_registered_under_names_of_their_own():
    names = [
        "facebook/esm2_t6_8M_UR50D",
        "facebook/esm2_t6_8M_UR50D?permuted=0",
        "facebook/esm2_t6_8M_UR50D?permuted=1",
        "facebook/esm2_t6_8M_UR50D?random=0",
    ]
    registered = [registry_name(name, 4, "residual", "topk") for name in names]
    assert registered[1] == "plmsae.esm2_t6_8M_UR50D_permuted_0.layer4.topk"
    assert len(set(registered)) == len(names)
    assert split_name(names[3]) == (names[0], Control("random", 0))
