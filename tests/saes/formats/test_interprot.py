from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.formats import export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import LAYER_NORM, TOKEN_RMS, TOLD, TOLERANCE, D, Draw, K, N, largest, standardised

UNTOLD = {**TOLD, "normaliser": None, "k": K}


def latents(s: dict[str, Tensor], x: Tensor) -> Tensor:
    return largest((standardised(x)[0] - s["b_pre"]) @ s["w_enc"] + s["b_enc"], K).relu()


def reconstruction(s: dict[str, Tensor], x: Tensor) -> Tensor:
    _, mu, sigma = standardised(x)
    return (latents(s, x) @ s["w_dec"] + s["b_pre"]) * sigma + mu


def state_of(draw: Draw) -> dict[str, Tensor]:
    return {"w_enc": draw(D, N), "w_dec": draw(N, D), "b_enc": draw(N) - 0.3, "b_pre": draw(D)}


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "lightning"])
def test_an_imported_sae_computes_what_interprot_computes(form: str, draw: Draw, x: Tensor, tmp_path: Path) -> None:
    state, x = state_of(draw), 3 * x + 1
    x[5] = 2.0  # a token without deviation
    whole = state | {"stats_last_nonzero": torch.zeros(N, dtype=torch.long)}
    if form == "safetensors":
        save_file(whole, tmp_path / "esm2_plm1280_l24_sae4096.safetensors")
    elif form == "state_dict":
        torch.save(whole, tmp_path / "sae.pt")
    else:
        prefixed = {f"sae_model.{name}": tensor for name, tensor in whole.items()}
        torch.save({"epoch": 0, "state_dict": prefixed, "hyper_parameters": {"k": 64}}, tmp_path / "sae.ckpt")
    sae = import_sae(tmp_path, "interprot", **UNTOLD)
    assert (sae.config.architecture, sae.config.k, sae.config.normaliser) == ("topk", K, LAYER_NORM)
    torch.testing.assert_close(sae.encode(x), latents(state, x), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(sae(x), reconstruction(state, x), atol=3 * TOLERANCE, rtol=0)
    assert sae(x)[5].tolist() == [2.0] * D


def test_k_must_be_told_and_the_files_must_be_of_one_sae(draw: Draw, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are 0: none"):
        import_sae(tmp_path, "interprot", **UNTOLD)
    save_file(state_of(draw), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="how many latents are active") as error:
        import_sae(tmp_path, "interprot", **{**UNTOLD, "k": None})
    assert "--k" in str(error.value.fix)
    for k in (0, N + 1):
        with pytest.raises(UserError, match=f"k = {k} is not in 1..{N}"):
            import_sae(tmp_path, "interprot", **{**UNTOLD, "k": k})
    with pytest.raises(UserError, match="the files say that the normaliser is"):
        import_sae(tmp_path, "interprot", **TOLD, k=K)
    save_file(state_of(draw), tmp_path / "b.safetensors")
    with pytest.raises(DataError, match=r"there are 2: a\.safetensors, b\.safetensors"):
        import_sae(tmp_path, "interprot", **UNTOLD)


def test_an_exported_sae_computes_what_ours_computes_and_comes_back(x: Tensor, tmp_path: Path) -> None:
    sae = generic_sae(normaliser=LAYER_NORM).requires_grad_(False)
    export_sae(sae, tmp_path / "ip", "interprot")
    state = load_file(tmp_path / "ip" / "sae.safetensors")
    torch.testing.assert_close(reconstruction(state, x), sae(x), atol=TOLERANCE, rtol=0)
    assert torch.equal(import_sae(tmp_path / "ip", "interprot", **UNTOLD)(x), sae(x))


def test_an_sae_that_does_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that library standardises tokens"):
        export_sae(generic_sae().folded(2.5), tmp_path / "a", "interprot")
    with pytest.raises(UserError, match="that library only knows"):
        export_sae(generic_sae(normaliser=TOKEN_RMS), tmp_path / "a", "interprot")
    with pytest.raises(UserError, match="k largest latents of each token and nothing else"):
        export_sae(generic_sae("relu", normaliser=LAYER_NORM), tmp_path / "a", "interprot")
