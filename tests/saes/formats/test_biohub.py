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
from tests.saes.formats.conftest import LAYER_NORM, TOLD, TOLERANCE, D, Draw, K, N, largest, standardised

UNTOLD = {**TOLD, "plm": "esmc_600m", "normaliser": None}


def latents(s: dict[str, Tensor], x: Tensor) -> Tensor:
    return largest(((standardised(x)[0] - s["b_dec"]) @ s["W_enc"]).relu(), K)


def reconstruction(s: dict[str, Tensor], x: Tensor) -> Tensor:
    """Theirs is the bracket; theirs stops there."""
    _, mu, sigma = standardised(x)
    return (latents(s, x) @ s["W_dec"] + s["b_dec"]) * sigma + mu


def put(folder: Path, draw: Draw, layers: tuple[int, ...] = (3, 5), **changes: Any) -> dict[int, dict[str, Tensor]]:
    config = {"d_model": D, "codebook_dim": N, "k": K, "available_layers": list(layers), "model_type": "esmc_sae"}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    states = {}
    for layer in layers:
        states[layer] = {
            "W_enc": draw(D, N), "W_dec": draw(N, D), "b_dec": draw(D), "idf": draw(N).abs(), "max": draw(N).abs(),
        }  # fmt: skip
        save_file(states[layer], folder / f"layer_{layer}.safetensors")
    return states


@pytest.mark.parametrize("layer", [3, 5])
def test_an_imported_sae_computes_what_biohub_computes(layer: int, draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state, x = put(tmp_path, draw)[layer], 3 * x + 1
    sae = import_sae(tmp_path, "biohub", **{**UNTOLD, "layer": layer})
    assert (sae.config.architecture, sae.config.k, sae.config.normaliser) == ("topk", K, LAYER_NORM)
    torch.testing.assert_close(sae.encode(x), latents(state, x), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(sae(x), reconstruction(state, x), atol=3 * TOLERANCE, rtol=0)
    inner = latents(state, x) @ state["W_dec"] + state["b_dec"]
    torch.testing.assert_close(sae.decode_standardised(sae.encode(x)), inner, atol=TOLERANCE, rtol=0)
    assert torch.equal(sae.latent_max, state["max"])


def test_maxima_of_one_are_maxima_that_nobody_measured(draw: Draw, tmp_path: Path) -> None:
    state = put(tmp_path, draw)[3]
    save_file({**state, "max": torch.ones(N)}, tmp_path / "layer_3.safetensors")
    assert not import_sae(tmp_path, "biohub", **UNTOLD).latent_max.any()
    save_file({**state, "max": -torch.ones(N)}, tmp_path / "layer_3.safetensors")
    with pytest.raises(DataError, match="max holds negative numbers"):
        import_sae(tmp_path, "biohub", **UNTOLD)


@pytest.mark.parametrize(
    ("changes", "told", "error", "message"),
    [
        ({}, {"layer": 4}, UserError, "no SAE of layer 4"),
        ({"use_residual_update_instead_of_states": True}, {}, UserError, r"h\[l\] - h\[l-1\]"),
        ({"model_type": "esmc"}, {}, UserError, "model_type = 'esmc'"),
        ({"d_model": 13}, {}, DataError, "d_model = 13, but the tensors imply 12"),
        ({"codebook_dim": None}, {}, DataError, "codebook_dim = None"),
        ({"k": 0}, {}, DataError, "k = 0 is not a whole number in 1..40"),
        ({}, {"k": K + 1}, UserError, "the files say k = 5, not 6"),
        ({}, {"normaliser": TOLD["normaliser"]}, UserError, "the files say that the normaliser is"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    changes: dict[str, Any], told: dict[str, Any], error: type[Exception], message: str, draw: Draw, tmp_path: Path
) -> None:
    put(tmp_path, draw, **changes)
    with pytest.raises(error, match=message):
        import_sae(tmp_path, "biohub", **{**UNTOLD, **told})


def test_the_layers_that_are_there_are_named(draw: Draw, tmp_path: Path) -> None:
    put(tmp_path, draw)
    with pytest.raises(UserError) as error:
        import_sae(tmp_path, "biohub", **{**UNTOLD, "layer": 4})
    assert error.value.fix == "pass one of the layers 3, 5"


def test_an_exported_sae_computes_what_ours_computes_and_comes_back(x: Tensor, tmp_path: Path) -> None:
    sae = generic_sae(normaliser=LAYER_NORM).requires_grad_(False)
    with pytest.raises(UserError, match="no encoder bias"):
        export_sae(sae, tmp_path / "bh", "biohub")
    sae.b_enc.zero_()
    export_sae(sae, tmp_path / "bh", "biohub")
    state = load_file(tmp_path / "bh" / "layer_4.safetensors")
    torch.testing.assert_close(reconstruction(state, x), sae(x), atol=TOLERANCE, rtol=0)
    back = import_sae(tmp_path / "bh", "biohub", **{**UNTOLD, "layer": 4})
    assert torch.equal(back(x), sae(x))
    assert torch.equal(back.latent_max, sae.latent_max)
    with pytest.raises(UserError, match="that library standardises tokens"):
        export_sae(generic_sae("random").folded(2.5), tmp_path / "a", "biohub")
