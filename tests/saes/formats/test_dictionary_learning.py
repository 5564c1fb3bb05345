import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes import load_folder, save
from plmsae.saes.formats import export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import TOLD, TOLERANCE, D, Draw, K, N, largest

OURS = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "l1_april",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jump_relu",
    "MatryoshkaBatchTopKSAE": "matryoshka",
}


def state_of(name: str, draw: Draw) -> dict[str, Tensor]:
    linear = {"encoder.weight": draw(N, D), "encoder.bias": draw(N), "decoder.weight": draw(D, N)}
    plain = {"W_enc": draw(D, N), "b_enc": draw(N), "W_dec": draw(N, D), "b_dec": draw(D)}
    k, threshold = {"k": torch.tensor(K, dtype=torch.int32)}, {"threshold": torch.tensor(0.4)}
    states: dict[str, dict[str, Tensor]] = {
        "AutoEncoder": {**linear, "bias": draw(D)},
        "AutoEncoderNew": {**linear, "decoder.bias": draw(D)},
        "AutoEncoderTopK": {**linear, "b_dec": draw(D), **k, **threshold},
        "BatchTopKSAE": {**linear, "b_dec": draw(D), **k, **threshold},
        "MatryoshkaBatchTopKSAE": {**plain, **k, **threshold, "group_sizes": torch.tensor([4, 12, 24])},
        "JumpReluAutoEncoder": {**plain, "threshold": draw(N).abs()},
        "GatedAutoEncoder": {
            "encoder.weight": draw(N, D), "decoder.weight": draw(D, N), "decoder_bias": draw(D),
            "gate_bias": draw(N), "mag_bias": draw(N), "r_mag": draw(N),
        },
    }  # fmt: skip
    return states[name]


def latents(name: str, s: dict[str, Tensor], x: Tensor) -> Tensor:
    if name == "AutoEncoder":
        return ((x - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    if name == "AutoEncoderNew":
        return (x @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    if name == "JumpReluAutoEncoder":
        pre = x @ s["W_enc"] + s["b_enc"]
        return (pre * (pre > s["threshold"])).relu()
    if name == "GatedAutoEncoder":
        h = (x - s["decoder_bias"]) @ s["encoder.weight"].T
        return ((h + s["gate_bias"]) > 0) * (s["r_mag"].exp() * h + s["mag_bias"]).relu()
    if name == "MatryoshkaBatchTopKSAE":
        active = ((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"]).relu()
        return active * (active > s["threshold"])
    active = ((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return largest(active, int(s["k"])) if name == "AutoEncoderTopK" else active * (active > s["threshold"])


def reconstruction(name: str, s: dict[str, Tensor], x: Tensor) -> Tensor:
    z = latents(name, s, x)
    if "W_dec" in s:
        return z @ s["W_dec"] + s["b_dec"]
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}
    return z @ s["decoder.weight"].T + s[bias.get(name, "b_dec")]


def put(folder: Path, name: str, state: Any, **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": N, **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return folder


@pytest.mark.parametrize("name", OURS)
def test_an_imported_sae_computes_what_the_library_computes(name: str, draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state = state_of(name, draw)
    sae = import_sae(put(tmp_path / "dl", name, state), "dictionary_learning", **TOLD)
    assert sae.config.architecture == OURS[name]
    torch.testing.assert_close(sae(x), reconstruction(name, state, x), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(sae.encode(x), latents(name, state, x), atol=TOLERANCE, rtol=0)
    sae.check_source("esm2_t6_8M_UR50D", "c731040f", 3, "residual")
    save(sae, tmp_path / "ours")
    assert torch.equal(load_folder(tmp_path / "ours")(x), sae(x))


@pytest.mark.parametrize("name", OURS)
def test_an_exported_sae_computes_what_ours_computes_and_comes_back(name: str, x: Tensor, tmp_path: Path) -> None:
    sae = generic_sae(OURS[name]).folded(2.5).requires_grad_(False)
    export_sae(sae, tmp_path / "dl", "dictionary_learning")
    state = torch.load(tmp_path / "dl" / "ae.pt", weights_only=True)
    x_hat = reconstruction(name, state, x)
    torch.testing.assert_close(x_hat, sae(x), atol=TOLERANCE, rtol=0)
    back = import_sae(tmp_path / "dl", "dictionary_learning", **TOLD)
    assert torch.equal(back(x), sae(x))
    assert back.config.k == sae.config.k
    export_sae(sae, tmp_path / "again", "dictionary_learning")
    assert (tmp_path / "again" / "ae.pt").read_bytes() == (tmp_path / "dl" / "ae.pt").read_bytes()


def test_the_baseline_random_is_a_top_k(x: Tensor, tmp_path: Path) -> None:
    sae = generic_sae("random").folded(2.5)
    export_sae(sae, tmp_path / "dl", "dictionary_learning")
    state = torch.load(tmp_path / "dl" / "ae.pt", weights_only=True)
    torch.testing.assert_close(reconstruction("AutoEncoderTopK", state, x), sae(x), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ["pca", "ica", "neurons"])
def test_what_no_class_computes_is_refused_and_leaves_nothing(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class that computes"):
        export_sae(generic_sae(architecture).folded(2.5), tmp_path / "dl", "dictionary_learning")
    assert list(tmp_path.iterdir()) == []


def test_reticular_needs_its_norm_factor_and_takes_activations_divided_by_it(
    draw: Draw, x: Tensor, tmp_path: Path
) -> None:
    state = state_of("MatryoshkaBatchTopKSAE", draw)
    torch.save(state, tmp_path / "ae.pt")
    told = {**TOLD, "dictionary_class": "MatryoshkaBatchTopKSAE"}
    with pytest.raises(UserError, match="do not say how the activations were scaled"):
        import_sae(tmp_path, "reticular", **{**told, "normaliser": None})
    told["normaliser"] = {"kind": "rms", "scale": 7.5, "folded": False}
    sae = import_sae(tmp_path, "reticular", **told)
    with pytest.raises(UserError, match=r"divided by 7\.5"):
        sae.check_source("esm2_t6_8M_UR50D", "c731040f", 3, "residual")
    # Their scale_biases: biases and threshold times the factor, then raw activations.
    scaled = {key: value * 7.5 if key in ("b_enc", "b_dec", "threshold") else value for key, value in state.items()}
    wanted = reconstruction("MatryoshkaBatchTopKSAE", scaled, 7.5 * x)
    torch.testing.assert_close(sae.folded(7.5)(7.5 * x), wanted, atol=10 * TOLERANCE, rtol=0)


def test_without_a_configuration_the_class_is_asked_for(draw: Draw, tmp_path: Path) -> None:
    torch.save(state_of("AutoEncoder", draw), tmp_path / "ae.pt")
    with pytest.raises(UserError, match="do not say which class"):
        import_sae(tmp_path, "dictionary_learning", **TOLD)
    assert import_sae(tmp_path, "dictionary_learning", **TOLD, dictionary_class="AutoEncoder").config.k == N


def test_a_threshold_below_zero_is_zero_for_jump_relu_and_unfinished_for_batch_top_k(
    draw: Draw, x: Tensor, tmp_path: Path
) -> None:
    state = state_of("JumpReluAutoEncoder", draw)
    state["threshold"][:7] = -0.2
    sae = import_sae(put(tmp_path / "a", "JumpReluAutoEncoder", state), "dictionary_learning", **TOLD)
    torch.testing.assert_close(sae(x), reconstruction("JumpReluAutoEncoder", state, x), atol=TOLERANCE, rtol=0)
    state = state_of("BatchTopKSAE", draw) | {"threshold": torch.tensor(-1.0)}
    with pytest.raises(DataError, match="threshold is -1: negative"):
        import_sae(put(tmp_path / "b", "BatchTopKSAE", state), "dictionary_learning", **TOLD)


@pytest.mark.parametrize(
    ("name", "change", "trainer", "message"),
    [
        ("AutoEncoderTopK", {"extra": torch.zeros(2)}, {}, "unknown tensor 'extra'"),
        ("AutoEncoderTopK", {"b_dec": None}, {}, "tensor 'b_dec' is missing"),
        ("AutoEncoderTopK", {"decoder.weight": torch.zeros(N, D)}, {}, "'decoder.weight' has shape (40, 12)"),
        ("AutoEncoderTopK", {"b_dec": torch.full((D,), torch.nan)}, {}, "'b_dec' holds 12 NaN"),
        ("AutoEncoderTopK", {"encoder.bias": torch.full((N,), 1e300, dtype=torch.float64)}, {}, "'encoder.bias' holds"),
        ("AutoEncoderTopK", {"k": torch.tensor(N + 1)}, {}, "k = 41 is not a whole number in 1..40"),
        ("AutoEncoderTopK", {}, {"k": K + 1}, "trainer.k = 6, but k of ae.pt is 5"),
        ("AutoEncoderTopK", {}, {"dict_size": 41}, "trainer.dict_size = 41"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([4, 12])}, {}, "sum to 16"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(
    name: str, change: dict[str, Any], trainer: dict[str, Any], message: str, draw: Draw, tmp_path: Path
) -> None:
    state = {key: value for key, value in (state_of(name, draw) | change).items() if value is not None}
    with pytest.raises(DataError) as caught:
        import_sae(put(tmp_path / "dl", name, state, **trainer), "dictionary_learning", **TOLD)
    assert message in caught.value.problem


def test_an_unknown_class_is_named(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'CrossCoder' cannot be imported"):
        import_sae(put(tmp_path / "dl", "CrossCoder", state_of("AutoEncoder", draw)), "dictionary_learning", **TOLD)
