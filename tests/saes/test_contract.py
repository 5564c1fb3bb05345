"""What every registered architecture must keep, whatever it does inside. A new one is tested by being registered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.saes import architectures, build, load_folder, sae_class, save, trainable_architectures
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.dictionary import Dictionary
from tests.saes.conftest import config_of, generic_sae

Make = Callable[..., SparseAutoencoder]
every = pytest.mark.parametrize("architecture", architectures())
trainable = pytest.mark.parametrize("architecture", trainable_architectures())


def inputs(num_rows: int = 50, seed: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num_rows, 12, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_the_registry_names_what_it_holds() -> None:
    assert set(trainable_architectures()) < set(architectures())
    trained = {"topk", "batch_topk", "matryoshka", "relu", "l1_april", "jump_relu", "gated"}
    assert trained <= set(trainable_architectures())
    assert {"neurons", "pca", "ica", "random"} == set(architectures()) - set(trainable_architectures())
    with pytest.raises(UserError, match="did you mean 'topk'"):
        sae_class("top_k")


@every
def test_shapes_and_sparsity(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture)
    n, k = sae.config.dictionary_size, sae.config.k
    z = sae.encode(inputs(24).view(2, 3, 4, 12))
    assert z.shape == (2, 3, 4, n)
    assert sae.decode(z).shape == sae(inputs(24).view(2, 3, 4, 12)).shape == (2, 3, 4, 12)
    assert bool((z >= 0).all())
    assert sae.calibrated or int((z > 0).sum(-1).max()) <= k
    assert sae.atoms.shape == (n, 12)
    indices, values = sae.encode_sparse(inputs())
    most = int((sae.encode(inputs()) > 0).sum(1).max())
    assert indices.shape == values.shape == (50, k if architecture in ("topk", "neurons") else most)
    assert indices.dtype == torch.int64
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    for empty in (sae.encode(inputs(0)), sae(inputs(0))):
        assert len(empty) == 0


@every
def test_sparse_and_dense_agree(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs()
    indices, values = sae.encode_sparse(x)
    z = sae.encode(x)
    assert torch.equal(z, torch.zeros_like(z).scatter(1, indices, values))
    torch.testing.assert_close(sae.decode_sparse(indices, values), sae.decode(z))
    torch.testing.assert_close(sae(x), z @ sae.atoms + sae.b_dec)


@every
def test_encoding_a_subset_equals_the_full_encoding(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs()
    for latents in ([3], [5, 0, 23, 5], list(range(sae.config.dictionary_size)), []):
        wanted = torch.tensor(latents, dtype=torch.int64)
        assert torch.equal(sae.encode_subset(x, wanted), sae.encode(x)[:, wanted])
    with pytest.raises(UserError, match="latents must lie in"):
        sae.encode_subset(x, torch.tensor([sae.config.dictionary_size]))


@every
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_folding_is_exact(architecture: str, scale: float, seed: int) -> None:
    """f(s x; s b) = s f(x; b), for latents, reconstructions and maxima alike."""
    sae = generic_sae(architecture, seed=seed, dtype=torch.float64)  # in fp32 near ties may be picked differently
    folded = sae.folded(scale)
    x = inputs(20, seed, torch.float64)
    torch.testing.assert_close(folded.encode(scale * x), scale * sae.encode(x), rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(folded(scale * x), scale * sae(x), rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(folded.latent_max, scale * sae.latent_max)
    torch.testing.assert_close(folded.atoms, sae.atoms)
    assert folded.config.normaliser == {"kind": "rms", "scale": scale, "folded": True}
    assert not sae.config.normaliser["folded"]


@every
def test_folding_is_exact_in_the_precision_of_use(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs(500)
    folded = sae.folded(761.92)
    torch.testing.assert_close(folded.encode(761.92 * x), 761.92 * sae.encode(x), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(folded(761.92 * x), 761.92 * sae(x), rtol=1e-5, atol=1e-2)


@every
def test_folding_twice_or_by_nonsense_is_refused(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture)
    with pytest.raises(UserError, match="folded already"):
        sae.folded(2.0).folded(2.0)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="not a positive number"):
            sae.folded(scale)


@every
def test_save_and_load_keep_every_bit(make_sae: Make, architecture: str, tmp_path: Path) -> None:
    sae, x = make_sae(architecture), inputs()
    save(sae, tmp_path / "a")
    save(make_sae(architecture), tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "sae.safetensors"]
    for name in ("config.json", "sae.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = load_folder(tmp_path / "a")
    assert type(loaded) is type(sae)
    assert loaded.config == sae.config
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded(x), sae(x))
    assert torch.equal(loaded.latent_max, sae.latent_max)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@every
def test_building_depends_on_the_seed_alone(architecture: str) -> None:
    first, second = build(config_of(architecture), seed=1), build(config_of(architecture), seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


@every
def test_the_same_rows_give_the_same_numbers_in_any_precision_of_input(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs().bfloat16()
    assert torch.equal(sae.encode(x), sae.encode(x.float()))


@every
def test_bad_input_is_refused_by_name(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture)
    with pytest.raises(UserError, match="width 12"):
        sae.encode(torch.zeros(3, 11))
    x = inputs()
    x[4, 3], x[9, 0] = float("nan"), float("inf")
    with pytest.raises(DataError, match="2 of 50 activation rows") as error:
        sae.encode(x)
    assert error.value.where == "row 4"
    with pytest.raises(UserError, match="no option 'aux_q'"):
        build(config_of(architecture, options={"aux_q": 1}))


@every
def test_another_source_is_refused_with_both_sides(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture).folded(2.5)
    sae.check_source("esm_small", "sha256:00", 4, "residual")
    for given_source, ours, theirs in (
        (("esm2_t6", "sha256:00", 4, "residual"), "plm esm_small", "plm esm2_t6"),
        (("esm_small", "sha256:11", 4, "residual"), "plm_revision sha256:00", "plm_revision sha256:11"),
        (("esm_small", "sha256:00", 5, "residual"), "layer 4", "layer 5"),
        (("esm_small", "sha256:00", 4, "mlp"), "hook residual", "hook mlp"),
    ):
        with pytest.raises(UserError) as error:
            sae.check_source(*given_source)
        assert ours in error.value.problem
        assert theirs in error.value.problem
    with pytest.raises(UserError, match=r"divided by 2\.5"):
        make_sae(architecture).check_source("esm_small", "sha256:00", 4, "residual")


def gradients(sae: SparseAutoencoder, of: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(of, list(sae.parameters()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(sae.named_parameters(), found)
    }


@trainable
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_total_reaches_every_parameter_and_respects_the_constraint(
    make_sae: Make, architecture: str, kernel: str
) -> None:
    sae = make_sae(architecture)
    assert isinstance(sae, Dictionary)
    sae.kernel = kernel
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        terms = sae.loss(inputs(200, step), torch.arange(sae.config.dictionary_size) % 4 == 0)
        terms.total.backward()  # type: ignore[no-untyped-call]
        for name, parameter in sae.named_parameters():
            assert parameter.grad is not None, name
            assert bool(torch.isfinite(parameter.grad).all()), name
            assert bool(parameter.grad.abs().sum() > 0), name
        sae.constrain_gradients()
        if sae.unit_norm:
            along = (sae.W_dec.grad * sae.W_dec).sum(1)  # type: ignore[operator]
            torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)
        optimizer.step()
        sae.constrain_weights()
        if sae.unit_norm:
            norms = sae.atoms.norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms))


@trainable
def test_every_term_reaches_the_parameters_it_declares_and_no_others(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture)
    assert isinstance(sae, Dictionary)
    terms = sae.terms(inputs(200), torch.arange(sae.config.dictionary_size) % 4 == 0)
    assert set(terms.values) == set(terms.weights) == set(sae.reaches)
    assert set().union(*sae.reaches.values()) == {name for name, _ in sae.named_parameters()}
    for term, value in terms.values.items():
        assert float(value) > 0
        reached = {name for name, gradient in gradients(sae, value).items() if bool(gradient.any())}
        assert reached == sae.reaches[term], term


@trainable
def test_terms_leave_the_latents_alone_that_they_do_not_concern(make_sae: Make, architecture: str) -> None:
    """A latent that is shut gets no gradient from reconstruction or penalty; AuxK changes dead latents alone."""
    sae = make_sae(architecture)
    assert isinstance(sae, Dictionary)
    with torch.no_grad():
        for name in ("b_enc", "b_gate"):
            if hasattr(sae, name):
                getattr(sae, name)[7] = -100.0
    dead = torch.arange(sae.config.dictionary_size) == 7
    terms = sae.terms(inputs(200), dead)
    for name, gradient in gradients(sae, terms.total).items():
        assert gradient.shape[0] != len(dead) or not gradient[7].any(), name
    if "aux_k" in sae.default_options:
        with torch.no_grad():
            sae.b_enc[7] = 0.5
        aux = sae.terms(inputs(200), dead).values["aux"]
        for name, gradient in gradients(sae, aux).items():
            if gradient.shape[0] == len(dead):
                assert bool(gradient[7].any()), name
                assert not gradient[~dead].any(), name


@trainable
def test_the_gradient_of_the_total_is_the_slope(make_sae: Make, architecture: str) -> None:
    """Central differences in fp64 for every parameter whose gradient is not an estimate by a kernel."""
    sae = make_sae(architecture, dtype=torch.float64)
    assert isinstance(sae, Dictionary)
    sae.kernel, x = "reference", inputs(30, dtype=torch.float64)
    # `gated` holds its decoder constant in one term, so the gradient is the slope for the other parameters alone.
    slopes_hold = {"gated": {"b_gate", "b_mag", "r_mag"}}.get(architecture, {"W_enc", "b_enc", "W_dec", "b_dec"})
    found = gradients(sae, sae.loss(x).total)
    for name, parameter in sae.named_parameters():
        if name not in slopes_hold:
            continue
        for place in range(0, parameter.numel(), max(1, parameter.numel() // 7)):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                    values.append(float(sae.loss(x).total))
                    parameter.view(-1)[place] -= step
            slope = (values[0] - values[1]) / 2e-6
            assert float(found[name].view(-1)[place]) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


@trainable
def test_training_selects_what_encode_selects_where_promised(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs(500)
    counts = sae.loss(x).counts
    assert counts.dtype == torch.int64
    if sae.training_encodes:
        assert torch.equal(counts, (sae.encode(x) > 0).sum(0))
        error = float((x - sae(x)).square().sum() / len(x))
        assert float(sae.loss(x).reconstruction) == pytest.approx(error, rel=1e-5)
    else:
        assert int(counts.sum()) == sae.config.k * len(x)
        sae.calibrate(x)
        assert torch.equal(counts, (sae.encode(x) > 0).sum(0))  # on the rows of the calibration they agree as well


@trainable
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_no_nan_on_constant_or_zero_input_or_a_wholly_dead_dictionary(
    make_sae: Make, architecture: str, kernel: str
) -> None:
    for shut in (False, True):
        sae = make_sae(architecture)
        sae.kernel = kernel
        if shut:
            with torch.no_grad():
                for name in ("b_enc", "b_gate"):
                    if hasattr(sae, name):
                        getattr(sae, name).fill_(-1e3)
        at_bias = sae.b_dec.detach().expand(8, 12).clone()
        for x in (torch.full((8, 12), 3.0), at_bias, torch.zeros(8, 12), inputs(8)):
            sae.zero_grad()
            terms = sae.loss(x, torch.ones(40, dtype=torch.bool))
            terms.total.backward()  # type: ignore[no-untyped-call]
            assert bool(torch.isfinite(torch.stack([terms.total, terms.reconstruction, terms.aux])).all())
            for name, parameter in sae.named_parameters():
                assert parameter.grad is None or bool(torch.isfinite(parameter.grad).all()), name
            assert not shut or not terms.counts.any()
            sae.calibrate(x)
            assert bool(torch.isfinite(sae(x)).all())


@trainable
def test_the_same_batch_gives_the_same_bits(make_sae: Make, architecture: str) -> None:
    first, second = (make_sae(architecture) for _ in range(2))
    dead = torch.arange(40) % 2 == 0
    totals = [sae.loss(inputs(300), dead).total for sae in (first, second)]
    assert torch.equal(*totals)
    one, other = gradients(first, totals[0]), gradients(second, totals[1])
    assert all(torch.equal(one[name], other[name]) for name in one)


@every
def test_unit_atoms_change_no_reconstruction_and_fold_alike(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs()
    unit = sae.with_unit_atoms()
    norms = sae.atoms.norm(dim=1)
    torch.testing.assert_close(unit.atoms.norm(dim=1), torch.ones_like(norms))
    torch.testing.assert_close(unit(x), sae(x))
    torch.testing.assert_close(unit.encode(x), sae.encode(x) * norms)
    torch.testing.assert_close(unit.latent_max, sae.latent_max * norms)
    torch.testing.assert_close(unit.folded(3.0)(3 * x), 3 * sae(x), rtol=1e-4, atol=1e-4)


@trainable
def test_the_penalty_factor_scales_the_penalty_alone(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs()
    assert isinstance(sae, Dictionary)
    full = sae.terms(x)
    sae.penalty_factor = 0.25
    part = sae.terms(x)
    for name, weight in full.weights.items():
        assert part.weights[name] == pytest.approx(0.25 * weight if name == "penalty" else weight)
        assert torch.equal(part.values[name], full.values[name])


@trainable
def test_training_lowers_the_error(make_sae: Make, architecture: str) -> None:
    sae, x = make_sae(architecture), inputs(400)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        terms = sae.loss(x)
        terms.total.backward()  # type: ignore[no-untyped-call]
        sae.constrain_gradients()
        optimizer.step()
        sae.constrain_weights()
        losses.append(float(terms.reconstruction))
    assert losses[-1] < 0.5 * losses[0]


NUMBERS = {"aux_alpha", "aux_k", "bandwidth", "initial_threshold", "penalty", "target_l0"}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        (name, option)
        for name in trainable_architectures()
        for option in sorted(NUMBERS & {*sae_class(name).default_options})
    ],
)
def test_numbers_of_options_are_checked(architecture: str, name: str) -> None:
    options = config_of(architecture).options
    for value in (-1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(UserError, match=f"option {name} = ") as error:
            build(config_of(architecture, options={**options, name: value}))
        assert error.value.fix


@every
def test_threads_that_encode_at_once_do_not_disturb_each_other(architecture: str) -> None:
    sae = generic_sae(architecture).requires_grad_(False)
    batches = [inputs(20_000, seed) for seed in range(8)]
    expected = [sae.encode_sparse(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(sae.encode_sparse, batches * 5))
    for number, (indices, values) in enumerate(found):
        assert torch.equal(indices, expected[number % 8][0])
        assert torch.equal(values, expected[number % 8][1])
