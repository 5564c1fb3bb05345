from pathlib import Path

import pytest
import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.formats import export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import TOLD, TOLERANCE, D, Draw, K, N, largest

OURS = {
    "BatchTopKSAE": "batch_topk",
    "JumpReLUSAE": "jump_relu",
    "ReLUSAE": "relu",
    "ReLUSAE_Tied": "l1_april",
    "TopKSAE": "topk",
}


def state_of(name: str, draw: Draw) -> dict[str, Tensor]:
    linear = {"encoder.weight": draw(N, D), "encoder.bias": draw(N), "decoder.weight": draw(D, N)}
    top_k = {**linear, "b_dec": draw(D), "k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.4)}
    states = {
        "BatchTopKSAE": top_k,
        "JumpReLUSAE": {**linear, "decoder.bias": draw(D), "threshold": draw(N)},
        "ReLUSAE": {**linear, "bias": draw(D)},
        "ReLUSAE_Tied": {**linear, "decoder.bias": draw(D)},
        "TopKSAE": top_k,
    }
    return states[name]


def reconstruction(name: str, s: dict[str, Tensor], x: Tensor) -> Tensor:
    bias = s[{"ReLUSAE": "bias", "TopKSAE": "b_dec", "BatchTopKSAE": "b_dec"}.get(name, "decoder.bias")]
    inputs = x if "decoder.bias" in s else x - bias
    z = (inputs @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    if name == "TopKSAE":
        z = largest(z, int(s["k"]))
    elif "threshold" in s:
        z = z * (z > s["threshold"])
    return z @ s["decoder.weight"].T + bias


@pytest.mark.parametrize("name", OURS)
def test_an_imported_sae_computes_what_interplm_computes(name: str, draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state = state_of(name, draw)
    factors = draw(N).abs()
    torch.save({**state, "activation_rescale_factor": factors, "normalize_to_sqrt_d": torch.tensor(False)},
               tmp_path / "ae.pt")  # fmt: skip
    told = {**TOLD, "dictionary_class": name} if "k" in state else TOLD
    sae = import_sae(tmp_path, "interplm", **told)
    assert sae.config.architecture == OURS[name]
    torch.testing.assert_close(sae(x), reconstruction(name, state, x), atol=TOLERANCE, rtol=0)
    assert torch.equal(sae.latent_max, factors)
    torch.save(state, tmp_path / "ae.pt")
    assert not import_sae(tmp_path, "interplm", **told).latent_max.any()


@pytest.mark.parametrize("architecture", [*OURS.values(), "matryoshka", "random"])
def test_an_exported_sae_computes_what_ours_computes_and_comes_back(
    architecture: str, x: Tensor, tmp_path: Path
) -> None:
    sae = generic_sae(architecture).folded(2.5).requires_grad_(False)
    sae.latent_max[4:6] = 0.0  # never fired: the library divides by the factor
    export_sae(sae, tmp_path / "ip", "interplm")
    state = torch.load(tmp_path / "ip" / "ae.pt", weights_only=True)
    theirs = {"matryoshka": "batch_topk", "random": "topk"}.get(architecture, architecture)
    name = next(item for item, ours in OURS.items() if ours == theirs)
    torch.testing.assert_close(reconstruction(name, state, x), sae(x), atol=TOLERANCE, rtol=0)
    told = {**TOLD, "dictionary_class": name} if "k" in state else TOLD
    back = import_sae(tmp_path / "ip", "interplm", **told)
    assert torch.equal(back(x), sae(x))
    assert state["activation_rescale_factor"][4:6].tolist() == [1.0, 1.0]
    assert torch.equal(back.latent_max[6:], sae.latent_max[6:])


@pytest.mark.parametrize("architecture", ["gated", "pca", "ica", "neurons"])
def test_what_no_class_computes_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class that computes"):
        export_sae(generic_sae(architecture).folded(2.5), tmp_path / "ip", "interplm")


@pytest.mark.parametrize("name", OURS)
def test_tokens_of_norm_sqrt_d_are_made_here_and_back(name: str, draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state, x = state_of(name, draw), 3 * x + 1
    torch.save({**state, "normalize_to_sqrt_d": torch.tensor(True)}, tmp_path / "ae.pt")
    told = {**TOLD, "normaliser": None, **({"dictionary_class": name} if "k" in state else {})}
    sae = import_sae(tmp_path, "interplm", **told)
    assert sae.config.normaliser == {"kind": "token_rms"}
    norms = x.norm(dim=1, keepdim=True)
    wanted = reconstruction(name, state, x / norms * D**0.5) * norms / D**0.5
    torch.testing.assert_close(sae(x), wanted, atol=3 * TOLERANCE, rtol=0)
    with pytest.raises(UserError, match="the files say that the normaliser is"):
        import_sae(tmp_path, "interplm", **{**told, "normaliser": TOLD["normaliser"]})
    export_sae(sae, tmp_path / "b", "interplm")
    back = torch.load(tmp_path / "b" / "ae.pt", weights_only=True)
    assert bool(back.pop("normalize_to_sqrt_d"))
    assert torch.equal(import_sae(tmp_path / "b", "interplm", **told)(x), sae(x))


CONFIG = """dataloader_cfg:
  plm_embd_dir: data/layer_3
  zscore_means_file: {means}
trainer_cfg:
  expansion_factor: null
  dictionary_size: {size}
  activation_dim: 12
  normalize_to_sqrt_d: {flag}
  k: 5
  auxk_alpha: 0.03125
  {own}
eval_cfg:
  k: 17
"""


def config(own: str, *, size: int = N, flag: str = "false", means: str = "null") -> str:
    return CONFIG.format(own=own, size=size, flag=flag, means=means)


@pytest.mark.parametrize(
    ("own", "name"), [("trainer_name: TopKTrainer", "TopKSAE"), ("dead_feature_threshold: 20000000", "BatchTopKSAE")]
)
def test_the_configuration_tells_classes_apart_and_must_agree(
    own: str, name: str, draw: Draw, x: Tensor, tmp_path: Path
) -> None:
    state = state_of(name, draw)
    torch.save(state, tmp_path / "ae.pt")
    (tmp_path / "config.yaml").write_text(config(own))
    sae = import_sae(tmp_path, "interplm", **TOLD)
    assert sae.config.architecture == OURS[name]
    torch.testing.assert_close(sae(x), reconstruction(name, state, x), atol=TOLERANCE, rtol=0)
    other = "TopKSAE" if name == "BatchTopKSAE" else "BatchTopKSAE"
    with pytest.raises(UserError, match=f"the files hold a '{name}', not a '{other}'"):
        import_sae(tmp_path, "interplm", **TOLD, dictionary_class=other)
    for text, message in (
        (config(own, size=41), r"dictionary_size = 41, but the tensors of ae\.pt say 40"),
        (config(own, flag="true"), r"normalize_to_sqrt_d = true, but the tensors of ae\.pt say false"),
        (config(own).replace("k: 5", "k: 6"), r"trainer_cfg\.k = 6, but the tensors"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(DataError, match=message):
            import_sae(tmp_path, "interplm", **TOLD)
    (tmp_path / "config.yaml").write_text(config(own, means="means.pt"))
    with pytest.raises(UserError, match="statistics that are not in these files"):
        import_sae(tmp_path, "interplm", **TOLD)
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a text file"):
        import_sae(tmp_path, "interplm", **TOLD)


def test_classes_that_share_their_names_are_asked_for_and_others_are_recognised(draw: Draw, tmp_path: Path) -> None:
    torch.save(state_of("TopKSAE", draw), tmp_path / "ae.pt")
    with pytest.raises(UserError, match="do not say which class"):
        import_sae(tmp_path, "interplm", **TOLD)
    with pytest.raises(DataError, match=r"tensor 'decoder\.bias' is missing|unknown tensor"):
        import_sae(tmp_path, "interplm", **TOLD, dictionary_class="JumpReLUSAE")
    torch.save(state_of("ReLUSAE", draw), tmp_path / "ae.pt")
    with pytest.raises(UserError, match="hold a 'ReLUSAE', not a 'TopKSAE'"):
        import_sae(tmp_path, "interplm", **TOLD, dictionary_class="TopKSAE")


def test_what_is_wrong_with_a_file_is_named(draw: Draw, tmp_path: Path) -> None:
    state = state_of("ReLUSAE", draw)
    for change, message in (
        ({"activation_rescale_factor": -torch.ones(N)}, "holds negative numbers"),
        ({"activation_rescale_factor": torch.ones(N + 1)}, "has shape"),
        ({"encoder.bias": torch.full((N,), torch.inf)}, "'encoder.bias' holds 40 NaN or infinite"),
        ({"extra": torch.ones(N)}, "unknown tensor 'extra'"),
    ):
        torch.save({**state, **change}, tmp_path / "ae.pt")
        with pytest.raises(DataError) as caught:
            import_sae(tmp_path, "interplm", **TOLD)
        assert message in caught.value.problem
