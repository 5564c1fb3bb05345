import pytest
import torch

from plmsae.errors import UserError
from plmsae.saes import build
from tests.saes.conftest import config_of, generic_sae


def test_each_neuron_counts_above_and_below_its_mean() -> None:
    sae = build(config_of("neurons", d_model=2, dictionary_size=4, k=2))
    sae.initialise(torch.Generator(), center=torch.tensor([1.0, -1.0]))
    x = torch.tensor([[3.0, -4.0], [0.5, -1.0]])
    assert torch.equal(sae.encode(x), torch.tensor([[2.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.5, 0.0]]))


def test_the_reconstruction_is_the_activation() -> None:
    sae = generic_sae("neurons")
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae(x), x)


def test_another_size_and_training_are_refused() -> None:
    with pytest.raises(UserError, match="have 24 latents and k = 12"):
        build(config_of("neurons", dictionary_size=25))
    with pytest.raises(UserError, match="no weights to train"):
        generic_sae("neurons").loss(torch.zeros(1, 12))
