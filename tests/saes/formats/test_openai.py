from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes.formats import export_sae, import_sae
from tests.saes.conftest import generic_sae
from tests.saes.formats.conftest import LAYER_NORM, TOLD, TOLERANCE, D, Draw, K, N, largest, standardised

UNTOLD = {**TOLD, "normaliser": None}


def reconstruction(state: dict[str, Any], x: Tensor) -> Tensor:
    if state["activation"] == "TopK":
        rows, mu, sigma = standardised(x)
    else:
        rows, mu, sigma = x, torch.zeros(1), torch.ones(1)
    pre = (rows - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    z = largest(pre, state["activation_state_dict"]["k"]).relu() if state["activation"] == "TopK" else pre.relu()
    return (z @ state["decoder.weight"].T + state["pre_bias"]) * sigma + mu


def state_of(activation: str, draw: Draw) -> dict[str, Any]:
    return {
        "pre_bias": draw(D), "latent_bias": draw(N), "encoder.weight": draw(N, D), "decoder.weight": draw(D, N),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.long), "latents_activation_frequency": torch.ones(N),
        "latents_mean_square": torch.zeros(N), "activation": activation,
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }  # fmt: skip


@pytest.mark.parametrize(("activation", "architecture"), [("TopK", "topk"), ("ReLU", "relu")])
def test_it_computes_what_openai_computes_both_ways(
    activation: str, architecture: str, draw: Draw, x: Tensor, tmp_path: Path
) -> None:
    state, x = state_of(activation, draw), 3 * x + 1
    twice = {f"activation.{key}": value for key, value in state["activation_state_dict"].items()}
    torch.save({**state, **twice}, tmp_path / "0.pt")
    told = UNTOLD if activation == "TopK" else TOLD
    sae = import_sae(tmp_path, "openai", **told)
    assert sae.config.architecture == architecture
    torch.testing.assert_close(sae(x), reconstruction(state, x), atol=3 * TOLERANCE, rtol=0)
    export_sae(sae, tmp_path / "out", "openai")
    again = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    torch.testing.assert_close(reconstruction(again, x), sae(x), atol=3 * TOLERANCE, rtol=0)
    assert torch.equal(import_sae(tmp_path / "out", "openai", **told)(x), sae(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "Identity"}, UserError, "activation 'Identity' cannot be imported"),
        ({"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, UserError, "latents may be negative"),
        ({"activation_state_dict": {}}, DataError, "k = None is not a whole number"),
        ({"activation_state_dict": 3}, UserError, "cannot be imported"),
        ({"activation.k": K + 1}, DataError, "activation.k is not 5"),
        ({"decoder.weight": "tied"}, DataError, "entry 'decoder.weight' is a str"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    change: dict[str, Any], error: type[Exception], message: str, draw: Draw, tmp_path: Path
) -> None:
    torch.save({**state_of("TopK", draw), **change}, tmp_path / "0.pt")
    with pytest.raises(error, match=message):
        import_sae(tmp_path, "openai", **UNTOLD)


def test_how_relu_activations_were_scaled_is_asked_for(draw: Draw, tmp_path: Path) -> None:
    torch.save(state_of("ReLU", draw), tmp_path / "0.pt")
    with pytest.raises(UserError, match="how the activations were scaled"):
        import_sae(tmp_path, "openai", **UNTOLD)
    with pytest.raises(UserError, match="a 'ReLU' has any number of active latents"):
        import_sae(tmp_path, "openai", **TOLD, k=3)


def test_what_the_library_does_not_compute_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that library standardises tokens"):
        export_sae(generic_sae().folded(2.5), tmp_path / "a", "openai")
    with pytest.raises(UserError, match="that library scales no token"):
        export_sae(generic_sae("relu", normaliser=LAYER_NORM), tmp_path / "a", "openai")
    with pytest.raises(UserError, match="TopK and ReLU alone"):
        export_sae(generic_sae("gated").folded(2.5), tmp_path / "a", "openai")
