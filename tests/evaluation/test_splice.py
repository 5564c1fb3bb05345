"""What is put in place of hidden states."""

from typing import Any

import pytest
import torch

from plmsae.evaluation.splice import (
    MEAN,
    RANDOM,
    SAE,
    WITH_ERROR,
    ZERO,
    Reconstruction,
    random_directions,
    replacements,
)
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
    directions = random_directions(["a", "b"], [15, 5], 12, 0)
    functions = replacements(reconstruction, mean, directions, error_term=True)
    assert torch.equal(functions[SAE](x), sae(x))
    assert torch.equal(reconstruction.out, sae(x))
    assert torch.equal(reconstruction.num_active, (sae.encode(x) > 0).sum(1))
    torch.testing.assert_close(functions[WITH_ERROR](x), x)
    assert not functions[ZERO](x).any()
    assert torch.equal(functions[MEAN](x), mean.expand(20, 12))
    largest = x.norm(dim=1, keepdim=True).clamp_min(1.0)
    assert float(((sae(x) - x) / largest).norm(dim=1).max()) < 5  # of the size of the token, whatever that is
    moved = (functions[RANDOM](x) - x).double()
    torch.testing.assert_close(moved.norm(dim=1), (sae(x) - x).double().norm(dim=1), rtol=1e-4, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(moved, directions.double(), dim=1)
    assert float(cosine[(sae(x) != x).any(1)].min()) > 0.999  # a token that is reconstructed exactly stays


def test_a_random_error_by_hand() -> None:
    """An SAE whose reconstruction errs by (3, 4): the state is moved by 5 along the direction."""
    reconstruction = Reconstruction.__new__(Reconstruction)
    x = torch.tensor([[1.0, 2.0], [0.5, -0.5]])
    reconstruction.x, reconstruction.out = x, x - torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    directions = torch.tensor([[0.6, -0.8], [1.0, 0.0]])
    moved = replacements(reconstruction, torch.zeros(2), directions, error_term=False)[RANDOM](x)
    torch.testing.assert_close(moved, torch.tensor([[1 + 3.0, 2 - 4.0], [0.5, -0.5]]))


def test_the_reconstruction_is_that_of_the_last_activations() -> None:
    sae = generic_sae()
    reconstruction = Reconstruction(sae)
    first, second = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1))
    for x in (first, second, second, first):
        assert torch.equal(reconstruction(x), sae(x))
        assert torch.equal(reconstruction.x, x)


def test_random_directions_are_uniform_and_of_the_name_and_the_seed_alone() -> None:
    together = random_directions(["a", "b"], [4, 3], 12, 0)
    assert torch.equal(together[4:], random_directions(["b"], [3], 12, 0))
    assert not torch.equal(together[:3], together[4:])
    assert not torch.equal(together, random_directions(["a", "b"], [4, 3], 12, 1))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(7))
    # On the sphere in 3 dimensions the mean is 0, the second moments are those of the identity over 3, and Archimedes
    # says that each coordinate is uniform on [-1, 1]: a quarter is above 1/2. 20,000 draws err by about 0.005.
    many = random_directions(["c"], [20_000], 3, 0).double()
    assert many.mean(0).abs().max() < 0.02
    torch.testing.assert_close(many.T @ many / 20_000, torch.eye(3).double() / 3, atol=0.015, rtol=0)
    assert ((many > 0.5).double().mean(0) - 0.25).abs().max() < 0.015
