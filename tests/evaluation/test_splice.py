"""What is put in place of hidden states."""

from typing import Any

import pytest
import torch

from plmsae.evaluation.splice import MEAN, SAE, WITH_ERROR, ZERO, Reconstruction, replacements
from tests.saes.conftest import generic_sae

NORMALISERS: list[dict[str, Any]] = [
    {"kind": "rms", "scale": 2.5, "folded": True},
    {"kind": "layer_norm", "epsilon": 1e-5},
    {"kind": "token_rms"},
]


@pytest.mark.parametrize("normaliser", NORMALISERS, ids=lambda item: str(item["kind"]))
def test_replacements_live_in_the_space_of_the_hidden_states(normaliser: dict[str, Any]) -> None:
    sae = generic_sae(normaliser=normaliser)
    x = torch.logspace(-1, 2, 20)[:, None] * (torch.randn(20, 12, generator=torch.Generator().manual_seed(0)) + 0.7)
    x[4] = 0.0
    mean = x.mean(0)
    reconstruction = Reconstruction(sae)
    functions = replacements(reconstruction, mean, error_term=True)
    assert torch.equal(functions[SAE](x), sae(x))
    assert torch.equal(reconstruction.out, sae(x))
    assert torch.equal(reconstruction.num_active, (sae.encode(x) > 0).sum(1))
    torch.testing.assert_close(functions[WITH_ERROR](x), x)
    assert not functions[ZERO](x).any()
    assert torch.equal(functions[MEAN](x), mean.expand(20, 12))
    largest = x.norm(dim=1, keepdim=True).clamp_min(1.0)
    assert float(((sae(x) - x) / largest).norm(dim=1).max()) < 5  # of the size of the token, whatever that is
