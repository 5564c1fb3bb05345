"""Normalisers that work token by token: by hand, and what every architecture must keep with one."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes import architectures, load_folder, save, trainable_architectures
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.normaliser import standardise
from tests.saes.conftest import config_of, generic_sae

LAYER_NORM: dict[str, Any] = {"kind": "layer_norm", "epsilon": 1e-5}
TOKEN_RMS: dict[str, Any] = {"kind": "token_rms"}
every = pytest.mark.parametrize("architecture", architectures())
trainable = pytest.mark.parametrize("architecture", trainable_architectures())
both = pytest.mark.parametrize("normaliser", [LAYER_NORM, TOKEN_RMS], ids=["layer_norm", "token_rms"])


def tokens(num_rows: int = 50, seed: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens of very different scales, off centre."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-1, 2, num_rows, dtype=dtype)[:, None]
    return scales * (torch.randn(num_rows, 12, generator=generator, dtype=dtype) + 0.7)


def pair(architecture: str, normaliser: dict[str, Any], **changes: Any) -> tuple[SparseAutoencoder, SparseAutoencoder]:
    """An SAE that scales every token, and one with its weights that takes scaled tokens."""
    sae = generic_sae(architecture, normaliser=normaliser, **changes)
    plain = generic_sae(architecture, **changes)
    plain.load_state_dict(sae.state_dict())
    return sae, plain


def by_definition(x: Tensor, normaliser: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised tokens, scales and offsets in fp64, from the formulas."""
    x = x.double()
    if normaliser is TOKEN_RMS:
        return x / x.square().mean(1, keepdim=True).sqrt(), x.square().mean(1, keepdim=True).sqrt(), torch.zeros(1)
    mean, deviation = x.mean(1, keepdim=True), x.std(1, keepdim=True, correction=1)
    return (x - mean) / (deviation + 1e-5), deviation, mean


def test_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    found = standardise(x, LAYER_NORM)
    sigma = math.sqrt(14 / 3)  # deviations -2, -1, 0, 3; their squares sum to 14 over d - 1 = 3
    torch.testing.assert_close(found.rows, torch.tensor([[-2.0, -1.0, 0.0, 3.0]]) / (sigma + 1e-5))
    torch.testing.assert_close(found.undo(torch.tensor([[1.0, 0, 0, 0]])), torch.tensor([[3 + sigma, 3, 3, 3]]))
    found = standardise(x, TOKEN_RMS)
    rms = math.sqrt(50 / 4)
    torch.testing.assert_close(found.rows, x / rms)
    torch.testing.assert_close(found.rows.norm(dim=1), torch.tensor([2.0]))  # sqrt(d)
    torch.testing.assert_close(found.undo(torch.tensor([[1.0, 0, 0, 0]])), torch.tensor([[rms, 0, 0, 0]]))
    rms_kind = standardise(x, {"kind": "rms", "scale": 2.0, "folded": False})
    assert rms_kind.rows is x
    assert rms_kind.undo(x) is x


@pytest.mark.parametrize(
    ("normaliser", "message"),
    [
        ({"kind": "layer_norm"}, "is not valid"),
        ({"kind": "layer_norm", "epsilon": 0.0}, "is not valid"),
        ({"kind": "layer_norm", "epsilon": float("nan")}, "is not valid"),
        ({"kind": "layer_norm", "epsilon": 1e-5, "folded": True}, "unknown key 'normaliser.folded'"),
        ({"kind": "token_rms", "scale": 1.0}, "unknown key 'normaliser.scale'"),
        ({"kind": "layernorm", "epsilon": 1e-5}, "kind 'layernorm' is unknown"),
        ({"kind": ["rms"]}, "is unknown"),
        ({}, "kind None is unknown"),
    ],
)
def test_normalisers_that_say_something_else_are_refused(normaliser: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        config_of("topk", normaliser=normaliser)
    assert error.value.fix
    with pytest.raises(UserError, match="no standard deviation"):
        config_of("neurons", d_model=1, dictionary_size=2, k=1, normaliser=LAYER_NORM)


@both
@every
def test_it_is_the_plain_sae_between_scaling_and_undoing(architecture: str, normaliser: dict[str, Any]) -> None:
    sae, plain = pair(architecture, normaliser)
    x = tokens()
    rows, scale, offset = by_definition(x, normaliser)
    z = sae.encode(x)
    torch.testing.assert_close(z, plain.encode(rows.float()), rtol=1e-4, atol=1e-4)
    wanted = scale * plain.decode(z).double() + offset
    indices, values = sae.encode_sparse(x)
    for found in (sae(x), sae.decode(z, x), sae.decode_sparse(indices, values, x)):
        torch.testing.assert_close(found / scale, wanted / scale, rtol=1e-5, atol=1e-5)
    assert torch.equal(sae.decode_standardised(z), plain.decode(z))
    latents = torch.tensor([5, 0, 23, 5])
    assert torch.equal(sae.encode_subset(x, latents), z[:, latents])
    assert sae(x.view(5, 10, 12)).shape == sae.decode(sae.encode(x.view(5, 10, 12)), x.view(5, 10, 12)).shape
    assert torch.equal(sae.encode(x.bfloat16()), sae.encode(x.bfloat16().float()))


@both
@every
@given(scale=st.floats(1e-2, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=20)
def test_the_scale_of_a_token_does_not_matter(
    architecture: str, normaliser: dict[str, Any], scale: float, shift: float, seed: int
) -> None:
    """f(s x + t) = f(x) and x^(s x + t) = s x^(x) + t; epsilon is a relative error of 1e-5 / sigma."""
    normaliser = {**normaliser, "epsilon": 1e-12} if "epsilon" in normaliser else normaliser
    sae = generic_sae(architecture, seed=seed, dtype=torch.float64, normaliser=normaliser)
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shift = shift if "epsilon" in normaliser else 0.0
    torch.testing.assert_close(sae.encode(scale * x + shift), sae.encode(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sae(scale * x + shift), scale * sae(x) + shift, rtol=1e-6, atol=1e-6 * scale + 1e-6)


@both
@every
def test_a_decoding_that_cannot_know_the_scale_is_refused(architecture: str, normaliser: dict[str, Any]) -> None:
    sae, x = generic_sae(architecture, normaliser=normaliser), tokens()
    z, (indices, values) = sae.encode(x), sae.encode_sparse(x)
    with pytest.raises(UserError, match="decoding needs the activations"):
        sae.decode(z)
    with pytest.raises(UserError, match="decoding needs the activations"):
        sae.decode_sparse(indices, values)
    with pytest.raises(UserError, match=r"those given are of shape \(49, 12\)"):
        sae.decode(z, x[1:])


@both
@every
def test_there_is_nothing_to_fold_and_raw_activations_are_taken(architecture: str, normaliser: dict[str, Any]) -> None:
    sae = generic_sae(architecture, normaliser=normaliser)
    with pytest.raises(UserError, match="no one scale to fold"):
        sae.folded(2.0)
    sae.check_source("esm_small", "sha256:00", 4, "residual")
    with pytest.raises(UserError, match="layer 4"):
        sae.check_source("esm_small", "sha256:00", 5, "residual")


@both
@every
def test_save_and_load_keep_every_bit(architecture: str, normaliser: dict[str, Any], tmp_path: Path) -> None:
    sae, x = generic_sae(architecture, normaliser=normaliser), tokens()
    save(sae, tmp_path / "a")
    loaded = load_folder(tmp_path / "a")
    assert loaded.config.normaliser == normaliser
    assert torch.equal(loaded(x), sae(x))


@both
@every
def test_tokens_without_a_scale_are_reconstructed_as_they_are(architecture: str, normaliser: dict[str, Any]) -> None:
    sae = generic_sae(architecture, normaliser=normaliser)
    x = tokens()
    x[3] = 0.0
    if normaliser is LAYER_NORM:
        x[7] = -4.0  # all entries alike: no deviation
    flat = [3, 7] if normaliser is LAYER_NORM else [3]
    assert bool(torch.isfinite(sae.encode(x)).all())
    assert torch.equal(sae(x)[flat], x[flat])
    huge = sae(1e25 * tokens())  # squares overflow in fp32
    assert bool(torch.isfinite(huge).all())
    x[9, 1] = torch.nan
    with pytest.raises(DataError, match="1 of 50 activation rows"):
        sae(x)


@both
@trainable
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_loss_and_the_threshold_are_those_of_scaled_tokens(
    architecture: str, normaliser: dict[str, Any], kernel: str
) -> None:
    sae, plain = pair(architecture, normaliser)
    sae.kernel = plain.kernel = kernel
    x = tokens(200)
    rows = sae.standardise(x).rows
    dead = torch.arange(sae.config.dictionary_size) % 4 == 0
    found, wanted = sae.loss(x, dead), plain.loss(rows, dead)
    assert torch.equal(found.total, wanted.total)
    assert torch.equal(found.counts, wanted.counts)
    sae.calibrate(x)
    plain.calibrate(rows)
    assert torch.equal(sae.encode(x), plain.encode(rows))
