from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import decomposition
from torch import Tensor

from plmsae.activations.blocks import BlockStore
from plmsae.errors import DataError, UserError
from plmsae.evaluation.baselines import METHODS, fit_baselines, fit_ica, fit_pca, measure_maxima, random_dictionary
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.units import Units
from plmsae.plms.base import ProteinLM
from plmsae.saes import load_folder, save
from tests.evaluation.conftest import random_sae, saved
from tests.saes.conftest import config_of

LIKE = config_of("topk")


def rows(num_rows: int = 400, seed: int = 1) -> Tensor:
    """Correlated rows of unequal variance, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    scales = torch.linspace(3, 0.2, 12, dtype=torch.float64)
    return torch.randn(num_rows, 12, generator=generator, dtype=torch.float64) * scales @ mixing + 100


def test_principal_components_are_those_of_scikit_learn() -> None:
    x = rows()
    ours = fit_pca(iter(x.split(77)), LIKE, num_components=5)  # type: ignore[no-untyped-call]
    theirs = decomposition.PCA(5, svd_solver="full").fit(x.numpy())
    signs = np.sign((ours.W_dec.numpy() * theirs.components_).sum(1, keepdims=True))
    np.testing.assert_allclose(ours.W_dec.numpy(), signs * theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.b_dec.numpy(), theirs.mean_, rtol=1e-6)
    assert ours.config.training == {
        "rows": 400,
        "explained_variance": pytest.approx(float(theirs.explained_variance_ratio_.sum())),
    }
    largest = ours.W_dec.abs().argmax(1, keepdim=True)
    assert bool((ours.W_dec.gather(1, largest) > 0).all())


def test_all_components_project_and_the_rest_is_the_unexplained_variance() -> None:
    x = rows()
    sae = fit_pca([x], LIKE, num_components=3, k=3)
    residual = (x - sae(x.float())).square().sum() / (x - x.mean(0)).square().sum()
    assert float(residual) == pytest.approx(1 - float(sae.config.training["explained_variance"]), rel=1e-4)
    whole = fit_pca([x], LIKE, k=12)
    torch.testing.assert_close(whole(x.float()), x.float(), atol=1e-4, rtol=0)


def test_independent_components_find_independent_sources() -> None:
    """Four sparse sources, mixed: up to order, sign and scale they come back, which PCA does not manage."""
    generator = np.random.default_rng(0)
    sources = generator.laplace(size=(4000, 4)) ** 3
    mixing = generator.normal(size=(4, 12))
    x = torch.from_numpy(sources @ mixing + 7)

    def recovered(sae: torch.nn.Module) -> float:
        signed = sae.encode(x.float())  # type: ignore[operator]
        scores = (signed[:, :4] - signed[:, 4:]).numpy()
        match = np.abs(np.corrcoef(scores.T, sources.T)[:4, 4:])
        return float(match.max(axis=0).min())

    ica = fit_ica(x, LIKE, num_components=4, seed=1)
    assert recovered(ica) > 0.99
    assert recovered(fit_pca([x], LIKE, num_components=4)) < 0.9
    assert ica.config.training["converged"] is True
    torch.testing.assert_close(ica(x.float()), x.float(), atol=2e-2, rtol=1e-4)
    again = fit_ica(x, LIKE, num_components=4, seed=1)
    assert torch.equal(again.W_enc, ica.W_enc)


def test_components_that_have_not_settled_are_a_baseline_that_says_so() -> None:
    sae = fit_ica(rows(), LIKE, max_iterations=1)
    assert sae.config.training["converged"] is False
    x = rows().float()
    assert bool(torch.isfinite(sae(x)).all())


def test_baselines_take_raw_activations_of_the_same_source(tmp_path: Path) -> None:
    x = rows()
    for sae in (fit_pca([x], LIKE), fit_ica(x, LIKE, num_components=6), random_dictionary(LIKE, x.mean(0))):
        sae.check_source(LIKE.plm, LIKE.plm_revision, LIKE.layer, LIKE.hook)
        assert sae.config.k == 5
        measure_maxima(sae, [x.float()[:100], x.float()[100:]])
        torch.testing.assert_close(sae.latent_max, sae.encode(x.float()).amax(0))
        save(sae, tmp_path / sae.config.architecture)
        loaded = load_folder(tmp_path / sae.config.architecture)
        assert torch.equal(loaded.encode(x.float()), sae.encode(x.float()))
    assert random_dictionary(LIKE, x.mean(0)).config.dictionary_size == 40
    assert Units("pca", load_folder(tmp_path / "pca")).unit_name(13) == "component 1 -"
    assert Units("random", load_folder(tmp_path / "random")).unit_name(13) == "latent 13"


def test_the_baselines_of_a_store(plm: ProteinLM, sequences: Path, store: Path, tmp_path: Path) -> None:
    inputs = Inputs.load(sequences, store, saved(random_sae(plm, store), tmp_path), root=tmp_path)
    x = torch.cat(list(BlockStore(store, "train").rows(1000)))
    settings = {"num_rows": 3000, "ica_rows": 2000, "ica_components": 16, "ica_iterations": 5, "seed": 0}
    fitted, again = (fit_baselines(inputs, **settings, threads=threads) for threads in (1, 2))  # type: ignore[arg-type]
    assert tuple(fitted.methods) == METHODS
    assert (fitted.num_rows, fitted.ica_rows, fitted.k) == (3000, 2000, 16)
    sizes = {name: (sae.config.dictionary_size, sae.config.k) for name, sae in fitted.methods.items()}
    d = plm.d_model
    assert sizes == {
        "sae": (256, 16), "neurons": (2 * d, d), "pca": (2 * d, d), "ica": (32, 16), "random": (256, 16)
    }  # fmt: skip
    for name, sae in fitted.methods.items():
        # Everything is measured on the same rows, the SAE too: its own file holds maxima over more of them.
        torch.testing.assert_close(sae.latent_max, sae.encode(x[:3000]).amax(0), rtol=1e-4, atol=1e-4)
        assert float(Units(name, sae).activations(x[:3000]).max()) == pytest.approx(1.0, abs=1e-4)
        for first, second in zip(sae.state_dict().values(), again.methods[name].state_dict().values()):
            assert torch.equal(first, second), name
    assert bool((inputs.sae.latent_max >= fitted.methods["sae"].latent_max).all())
    assert not torch.equal(inputs.sae.latent_max, fitted.methods["sae"].latent_max)


def test_data_that_has_no_components_is_refused() -> None:
    x = rows()
    with pytest.raises(DataError, match="1 rows have no variance"):
        fit_pca([x[:1]], LIKE)
    with pytest.raises(DataError, match="do not vary"):
        fit_pca([torch.ones(5, 12)], LIKE)
    for few in (x[:1], x[:8], torch.ones(50, 12)):
        with pytest.raises(DataError, match="12 components need as many"):
            fit_ica(few, LIKE)
    for fit in (lambda part: fit_pca([part], LIKE), lambda part: fit_ica(part, LIKE)):
        with pytest.raises(UserError, match="width 12"):
            fit(x[:, :11])
        broken = x.clone()
        broken[7, 2] = float("inf")
        with pytest.raises(DataError, match="1 of 400 activation rows") as error:
            fit(broken)
        assert error.value.where == "row 7"
    with pytest.raises(UserError, match=r"num_components 13 is not in 1\.\.12"):
        fit_pca([x], LIKE, num_components=13)
    with pytest.raises(UserError, match=r"k = 4 is not in 1\.\.3"):
        fit_ica(x, LIKE, num_components=3, k=4)
    with pytest.raises(UserError, match="a mean of shape"):
        random_dictionary(LIKE, torch.zeros(11))
