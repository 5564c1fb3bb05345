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
from tests.saes.formats.conftest import TOLD, TOLERANCE, D, Draw, K, N, largest

CFG: dict[str, Any] = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": N,
    "k": K,
    "multi_topk": True,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def reconstruction(cfg: dict[str, Any], s: dict[str, Tensor], x: Tensor) -> Tensor:
    pre = ((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return largest(pre, cfg["k"]) @ s["W_dec"] + s["b_dec"]


def put(folder: Path, draw: Draw, **changes: Any) -> dict[str, Tensor]:
    state = {"encoder.weight": draw(N, D), "encoder.bias": draw(N), "W_dec": draw(N, D), "b_dec": draw(D)}
    save_file(state, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**CFG, **changes}))
    return state


@pytest.mark.parametrize("num_latents", [N, 0])
def test_an_imported_sae_computes_what_sparsify_computes(
    num_latents: int, draw: Draw, x: Tensor, tmp_path: Path
) -> None:
    state = put(tmp_path, draw, num_latents=num_latents)
    sae = import_sae(tmp_path, "sparsify", **TOLD)
    assert (sae.config.architecture, sae.config.k) == ("topk", K)
    torch.testing.assert_close(sae(x), reconstruction(CFG, state, x), atol=TOLERANCE, rtol=0)


def test_half_precision_is_read_as_it_is(draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in put(tmp_path, draw).items()}
    save_file(state, tmp_path / "sae.safetensors")
    wanted = reconstruction(CFG, {name: tensor.float() for name, tensor in state.items()}, x)
    torch.testing.assert_close(import_sae(tmp_path, "sparsify", **TOLD)(x), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("architecture", ["topk", "random"])
def test_an_exported_sae_computes_what_ours_computes_and_comes_back(
    architecture: str, x: Tensor, tmp_path: Path
) -> None:
    sae = generic_sae(architecture).folded(2.5).requires_grad_(False)
    export_sae(sae, tmp_path / "sp", "sparsify")
    cfg = json.loads((tmp_path / "sp" / "cfg.json").read_text())
    state = load_file(tmp_path / "sp" / "sae.safetensors")
    torch.testing.assert_close(reconstruction(cfg, state, x), sae(x), atol=TOLERANCE, rtol=0)
    assert torch.equal(import_sae(tmp_path / "sp", "sparsify", **TOLD)(x), sae(x))


@pytest.mark.parametrize("architecture", ["batch_topk", "relu", "gated", "pca"])
def test_anything_but_the_k_largest_is_refused(architecture: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the k largest latents of each token and nothing else"):
        export_sae(generic_sae(architecture).folded(2.5), tmp_path / "sp", "sparsify")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"transcode": True}, UserError, "transcode is set"),
        ({"skip_connection": True}, UserError, "skip_connection is set"),
        ({"activation": "groupmax"}, UserError, "activation = 'groupmax'"),
        ({"d_in": 13}, DataError, "d_in = 13"),
        ({"num_latents": 41}, DataError, "num_latents = 41"),
        ({"k": 41}, DataError, "k = 41"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    changes: dict[str, Any], error: type[Exception], message: str, draw: Draw, tmp_path: Path
) -> None:
    put(tmp_path, draw, **changes)
    with pytest.raises(error, match=message):
        import_sae(tmp_path, "sparsify", **TOLD)


def test_the_orientation_of_the_decoder_is_checked(draw: Draw, tmp_path: Path) -> None:
    state = put(tmp_path, draw)
    save_file({**state, "W_dec": state["W_dec"].t().contiguous()}, tmp_path / "sae.safetensors")
    with pytest.raises(DataError, match=r"'W_dec' has shape \(12, 40\), not \(40, 12\)"):
        import_sae(tmp_path, "sparsify", **TOLD)
