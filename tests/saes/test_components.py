import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.saes.components import ICA, PCA
from tests.saes.conftest import config_of, generic_sae


def pca(num_components: int, k: int) -> PCA:
    return PCA(config_of("pca", d_model=2, dictionary_size=2 * num_components, k=k))


def test_the_positive_and_the_negative_part_of_a_score_are_two_latents() -> None:
    sae = pca(2, 2)
    sae.set_components(torch.tensor([[0.6, 0.8], [0.8, -0.6]]), torch.tensor([1.0, 0.0]))
    x = torch.tensor([[1.6, 0.8], [-2.0, 1.0]])
    # Deviations (0.6, 0.8) and (-3, 1): scores 1 and 0; -1 and -3.
    torch.testing.assert_close(sae.encode(x), torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 3.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(sae(x), x)


def test_of_the_components_the_k_largest_scores_are_kept() -> None:
    sae = pca(2, 1)
    sae.set_components(torch.tensor([[0.6, 0.8], [0.8, -0.6]]), torch.zeros(2))
    x = torch.tensor([[1.4, 0.2], [-3.0, 1.0]])
    scores = x @ sae.W_dec.T
    largest = scores.abs().argmax(1)
    z = sae.encode(x)
    assert (z > 0).sum(1).tolist() == [1, 1]
    torch.testing.assert_close(z.amax(1), scores.abs().amax(1))
    torch.testing.assert_close(sae(x), scores.gather(1, largest[:, None]) * sae.W_dec[largest])


def test_independent_components_decode_along_unit_mixing_directions() -> None:
    sae = ICA(config_of("ica", d_model=2, dictionary_size=4, k=2))
    mixing = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # directions that are not orthogonal, of lengths 5 and 2
    unmixing = torch.linalg.inv(mixing.T)
    center = torch.tensor([1.0, -1.0])
    sae.set_components(unmixing, mixing, center)
    sources = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    x = sources @ mixing + center
    torch.testing.assert_close(sae.encode(x), torch.tensor([[5.0, 0, 0, 4.0], [2.5, 0, 0, 0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae(x), x)
    torch.testing.assert_close(sae.atoms[:2], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


@pytest.mark.parametrize(("size", "k"), [(23, 5), (26, 5), (10, 6)])
@pytest.mark.parametrize("name", ["pca", "ica"])
def test_sizes_that_do_not_fit_are_refused(name: str, size: int, k: int) -> None:
    kind = {"pca": PCA, "ica": ICA}[name]
    with pytest.raises(UserError, match="two latents for each of at most 12 components"):
        kind(config_of(name, dictionary_size=size, k=k))


def test_components_that_are_none_are_refused() -> None:
    sae, zero = pca(2, 2), torch.zeros(2)
    before = sae.W_dec.clone()
    with pytest.raises(DataError, match=r"not orthonormal: an inner product is off by 1\b"):
        sae.set_components(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), zero)
    with pytest.raises(UserError, match=r"'components' has shape \(1, 2\), not \(2, 2\)"):
        sae.set_components(torch.tensor([[1.0, 0.0]]), zero)
    with pytest.raises(DataError, match="'components' holds NaN"):
        sae.set_components(torch.full((2, 2), float("nan")), zero)
    with pytest.raises(UserError, match="'center' has shape"):
        sae.set_components(torch.eye(2), torch.zeros(1))
    assert torch.equal(sae.W_dec, before)
    ica = ICA(config_of("ica", d_model=2, dictionary_size=4, k=2))
    with pytest.raises(DataError, match="do not invert each other"):
        ica.set_components(torch.eye(2), 2 * torch.eye(2), zero)


@pytest.mark.parametrize("name", ["pca", "ica", "random"])
def test_a_baseline_is_not_trained(name: str) -> None:
    sae = generic_sae(name)
    assert list(sae.parameters()) == []
    with pytest.raises(UserError, match=f"the baseline '{name}' is"):
        sae.loss(torch.zeros(2, 12))
