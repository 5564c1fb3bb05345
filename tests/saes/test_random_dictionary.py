import torch

from plmsae.saes import build
from tests.saes.conftest import config_of


def test_the_atoms_are_isotropic_unit_vectors_and_the_encoder_is_tied() -> None:
    sae = build(config_of("random", dictionary_size=4000), seed=3)
    sae.initialise(torch.Generator().manual_seed(3), center=torch.ones(12))
    atoms = sae.atoms
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(12 * atoms.T @ atoms / 4000, torch.eye(12), atol=0.12, rtol=0)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    scores = (x - 1) @ atoms.T
    top = scores.topk(5, dim=1)
    torch.testing.assert_close(sae.encode(x), torch.zeros_like(scores).scatter(1, top.indices, top.values.relu()))


def test_another_seed_draws_other_atoms() -> None:
    first, second = (build(config_of("random"), seed=seed) for seed in (0, 1))
    assert float((first.atoms * second.atoms).sum(1).abs().max()) < 0.99
