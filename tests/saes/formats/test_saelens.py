import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.formats import export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import LAYER_NORM, TOKEN_RMS, TOLD, TOLERANCE, D, Draw, K, N, largest, standardised

UNTOLD = {**TOLD, "normaliser": None}
CFG: dict[str, Any] = {
    "d_in": D,
    "d_sae": N,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.22.1", "model_name": "esm2"},
}


def reconstruction(cfg: dict[str, Any], s: dict[str, Tensor], x: Tensor) -> Tensor:
    if cfg["normalize_activations"] == "layer_norm":
        rows, mu, sigma = standardised(x)
        return reconstruction({**cfg, "normalize_activations": "none"}, s, rows) * sigma + mu
    if cfg["normalize_activations"] == "constant_norm_rescale":
        factor = D**0.5 / x.norm(dim=-1, keepdim=True)
        return reconstruction({**cfg, "normalize_activations": "none"}, s, x * factor) / factor
    inputs = x - s["b_dec"] * cfg["apply_b_dec_to_input"]
    norms = s["W_dec"].norm(dim=-1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(N)
    if cfg["architecture"] == "gated":
        active = (inputs @ s["W_enc"] + s["b_gate"]) > 0
        z = active * (inputs @ (s["W_enc"] * s["r_mag"].exp()) + s["b_mag"]).relu()
    else:
        pre = (inputs @ s["W_enc"] + s["b_enc"]) * norms
        if cfg["architecture"] == "topk":
            z = largest(pre, cfg["k"]).relu()
        else:
            z = pre.relu() * (pre > s["threshold"]) if "threshold" in s else pre.relu()
    return (z * (1 / norms)) @ s["W_dec"] + s["b_dec"]


def state_of(architecture: str, draw: Draw) -> dict[str, Tensor]:
    state = {"W_enc": draw(D, N), "W_dec": draw(N, D), "b_dec": draw(D)}
    if architecture == "gated":
        return state | {"b_gate": draw(N), "b_mag": draw(N), "r_mag": draw(N)}
    return state | {"b_enc": draw(N)} | ({"threshold": draw(N)} if architecture == "jumprelu" else {})


def put(folder: Path, architecture: str, state: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    cfg = {**CFG, "architecture": architecture, **({"k": K} if architecture == "topk" else {}), **changes}
    save_file(state, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return cfg


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize(
    ("architecture", "changes", "ours"),
    [
        ("standard", {}, ("l1_april", "relu")),
        ("topk", {}, ("topk", "topk")),
        ("topk", {"rescale_acts_by_decoder_norm": True}, ("topk", "topk")),
        ("jumprelu", {}, ("jump_relu", "jump_relu")),
        ("gated", {}, ("gated", "gated")),
    ],
)
def test_an_imported_sae_computes_what_saelens_computes(
    architecture: str, changes: dict[str, Any], ours: tuple[str, str], pre_bias: bool, draw: Draw, x: Tensor,
    tmp_path: Path,
) -> None:  # fmt: skip
    state = state_of(architecture, draw)
    cfg = put(tmp_path, architecture, state, apply_b_dec_to_input=pre_bias, **changes)
    sae = import_sae(tmp_path, "saelens", **UNTOLD)
    assert sae.config.architecture == ours[pre_bias]
    assert sae.config.normaliser == {"kind": "rms", "scale": 1.0, "folded": True}
    torch.testing.assert_close(sae(x), reconstruction(cfg, state, x), atol=TOLERANCE, rtol=0)


def test_activations_scaled_by_saelens_are_our_normaliser(draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state = state_of("jumprelu", draw)
    cfg = put(tmp_path, "jumprelu", state, normalize_activations="expected_average_only_in")
    with pytest.raises(DataError, match=r"activation_scaler\.json' is missing"):
        import_sae(tmp_path, "saelens", **UNTOLD)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    sae = import_sae(tmp_path, "saelens", **UNTOLD)
    assert sae.config.normaliser == {"kind": "rms", "scale": 4.0, "folded": False}
    wanted = reconstruction(cfg, state, 0.25 * x) / 0.25
    torch.testing.assert_close(sae.folded(4.0)(x), wanted, atol=4 * TOLERANCE, rtol=0)
    with pytest.raises(UserError, match="the files say that the normaliser is"):
        import_sae(tmp_path, "saelens", **TOLD)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0}')
    with pytest.raises(DataError, match="scaling_factor = 0 is not a positive number"):
        import_sae(tmp_path, "saelens", **UNTOLD)


@pytest.mark.parametrize(("mode", "normaliser"), [("layer_norm", LAYER_NORM), ("constant_norm_rescale", TOKEN_RMS)])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_tokens_scaled_by_saelens_are_scaled_here_and_back(
    architecture: str, mode: str, normaliser: dict[str, Any], draw: Draw, x: Tensor, tmp_path: Path
) -> None:
    state, x = state_of(architecture, draw), 3 * x + 1
    cfg = put(tmp_path / "a", architecture, state, normalize_activations=mode, apply_b_dec_to_input=False)
    sae = import_sae(tmp_path / "a", "saelens", **UNTOLD)
    assert sae.config.normaliser == normaliser
    wanted = reconstruction(cfg, state, x)
    torch.testing.assert_close(sae(x), wanted, atol=3 * TOLERANCE, rtol=0)
    sae.check_source("esm2_t6_8M_UR50D", "c731040f", 3, "residual")
    with pytest.raises(UserError, match="the files say that the normaliser is"):
        import_sae(tmp_path / "a", "saelens", **TOLD)
    export_sae(sae, tmp_path / "b", "saelens")
    cfg = json.loads((tmp_path / "b" / "cfg.json").read_text())
    assert cfg["normalize_activations"] == mode
    state = load_file(tmp_path / "b" / "sae_weights.safetensors")
    torch.testing.assert_close(reconstruction(cfg, state, x), wanted, atol=3 * TOLERANCE, rtol=0)
    sae.config = sae.config.replace(normaliser={**LAYER_NORM, "epsilon": 1e-3})
    with pytest.raises(UserError, match="that library only knows"):
        export_sae(sae, tmp_path / "c", "saelens")


def test_a_scale_that_was_folded_by_saelens_can_be_told(draw: Draw, tmp_path: Path) -> None:
    put(tmp_path, "standard", state_of("standard", draw))
    normaliser = {"kind": "rms", "scale": 3.5, "folded": True}
    sae = import_sae(tmp_path, "saelens", **{**TOLD, "normaliser": normaliser})
    assert sae.config.normaliser == normaliser


@pytest.mark.parametrize(
    ("architecture", "theirs"),
    [
        ("relu", "standard"), ("l1_april", "standard"), ("topk", "topk"), ("random", "topk"),
        ("batch_topk", "jumprelu"), ("matryoshka", "jumprelu"), ("jump_relu", "jumprelu"), ("gated", "gated"),
    ],
)  # fmt: skip
def test_an_exported_sae_computes_what_ours_computes_and_comes_back(
    architecture: str, theirs: str, x: Tensor, tmp_path: Path
) -> None:
    sae = generic_sae(architecture).folded(2.5).requires_grad_(False)
    export_sae(sae, tmp_path / "sl", "saelens")
    cfg = json.loads((tmp_path / "sl" / "cfg.json").read_text())
    assert cfg["architecture"] == theirs
    state = load_file(tmp_path / "sl" / "sae_weights.safetensors")
    torch.testing.assert_close(reconstruction(cfg, state, x), sae(x), atol=TOLERANCE, rtol=0)
    back = import_sae(tmp_path / "sl", "saelens", **TOLD)
    torch.testing.assert_close(back(x), sae(x), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ["pca", "ica", "neurons"])
def test_what_no_architecture_computes_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of its inference architectures"):
        export_sae(generic_sae(architecture).folded(2.5), tmp_path / "sl", "saelens")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"metadata": {"sae_lens_version": "5.9.0"}}, UserError, "before version 6"),
        ({"metadata": None}, UserError, "before version 6"),
        ({"architecture": "batchtopk"}, UserError, "'batchtopk' cannot be imported"),
        ({"architecture": "skip_transcoder"}, UserError, "'skip_transcoder' cannot be imported"),
        ({"normalize_activations": "covariance_whitening"}, UserError, "'covariance_whitening' cannot be imported"),
        ({"reshape_activations": "hook_z"}, UserError, "heads of an attention layer"),
        ({"apply_b_dec_to_input": None}, DataError, "apply_b_dec_to_input = None"),
        ({"d_sae": 41}, DataError, "d_sae = 41, but the tensors imply 40"),
        ({"k": 41}, DataError, "k = 41 is not a whole number in 1..40"),
        ({"k": None}, DataError, "k = None"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    changes: dict[str, Any], error: type[Exception], message: str, draw: Draw, tmp_path: Path
) -> None:
    put(tmp_path, **{"architecture": "topk", **changes}, state=state_of("topk", draw))
    with pytest.raises(error, match=message.replace(".", r"\.")):
        import_sae(tmp_path, "saelens", **UNTOLD)


def test_a_tensor_too_many_and_a_zero_norm_are_named(draw: Draw, tmp_path: Path) -> None:
    state = state_of("topk", draw)
    put(tmp_path, "standard", state | {"scaling_factor": torch.ones(N)})
    with pytest.raises(DataError, match="unknown tensor 'scaling_factor'"):
        import_sae(tmp_path, "saelens", **UNTOLD)
    state["W_dec"][3] = 0.0
    put(tmp_path, "topk", state, rescale_acts_by_decoder_norm=True)
    with pytest.raises(DataError, match="1 rows of W_dec are zero"):
        import_sae(tmp_path, "saelens", **UNTOLD)
