"""The hand-written step against the loss as the paper writes it, differentiated by autograd in fp64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.selection import group_size
from tests.saes.conftest import generic_sae

Make = Callable[..., SparseAutoencoder]
CASES = {
    "topk": ("topk", {}),
    "batch_topk": ("batch_topk", {}),
    **{
        f"matryoshka, {reduction}": ("matryoshka", {"group_sizes": [0.1, 0.3, 0.6], "reduction": reduction})
        for reduction in ("paper", "dictionary_learning", "reference")
    },
}
every_case = pytest.mark.parametrize("case", CASES)


def make_case(case: str, *, dictionary_size: int = 40, **changes: Any) -> SparseAutoencoder:
    """The SAE of a case; group sizes as shares of the dictionary."""
    architecture, options = CASES[case]
    if options:
        options = {**options, "group_sizes": [round(share * dictionary_size) for share in options["group_sizes"]]}
        options["group_sizes"][-1] += dictionary_size - sum(options["group_sizes"])
    return generic_sae(architecture, dictionary_size=dictionary_size, options=options, **changes)


def same(fast: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    assert set(fast) == set(plain) >= {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert torch.equal(fast["n"], plain["n"])
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], rtol=tolerance, atol=tolerance)


def gradients(sae: SparseAutoencoder, kernel: str, x: Tensor, dead: Tensor | None) -> dict[str, Tensor]:
    sae.kernel = kernel
    sae.zero_grad()
    terms = sae.loss(x, dead)
    (3.0 * terms.total).backward()  # a factor, so that the incoming gradient must be used
    out = {name: parameter.grad.clone() for name, parameter in sae.named_parameters() if parameter.grad is not None}
    return {**out, "total": terms.total.detach(), "rec": terms.reconstruction, "aux": terms.aux, "n": terms.counts}


@every_case
@pytest.mark.parametrize("num_dead", [0, 1, 9, 25])  # aux_k = 6: none, fewer and more dead latents than it takes
@pytest.mark.parametrize("k", [1, 5, 40])  # 40: more than are positive
def test_loss_and_every_gradient_equal_the_dense_reference(case: str, k: int, num_dead: int) -> None:
    sae = make_case(case, k=k, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(33, 12, generator=generator, dtype=torch.float64)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[torch.randperm(40, generator=generator)[:num_dead]] = True
    fast, plain = gradients(sae, "auto", x, dead), gradients(sae, "reference", x, dead)
    same(fast, plain, 1e-12)
    assert (plain["aux"] > 0) == (num_dead > 0)
    assert (int(plain["n"].sum()) == 33 * k) == (k < 40)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_large_dictionary_in_several_blocks_gives_the_same_step(case: str, dtype: torch.dtype) -> None:
    """Two-stage selection, and a floor for the batch's candidates."""
    sae = make_case(case, dictionary_size=1024, k=8, dtype=dtype)
    assert group_size(1024, 8) > 1
    x = torch.randn(2500, 12, generator=torch.Generator().manual_seed(2), dtype=dtype)
    dead = torch.arange(1024) % 3 == 0
    same(
        gradients(sae, "auto", x, dead),
        gradients(sae, "reference", x, dead),
        1e-11 if dtype == torch.float64 else 1e-4,
    )


@every_case
def test_blocks_that_are_unlike_each_other(case: str) -> None:
    """The first block is no sample of the batch: all that it leaves below the floor comes after it, or nothing does."""
    sae = make_case(case, dictionary_size=1024, k=8, dtype=torch.float64)
    x = torch.randn(5000, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for part in (slice(0, 2048), slice(2048, 5000)):
        unlike = x.clone()
        unlike[part] *= 100.0
        same(gradients(sae, "auto", unlike, None), gradients(sae, "reference", unlike, None), 1e-9)


@every_case
def test_k_of_the_training_is_what_is_selected(case: str) -> None:
    sae = make_case(case, dtype=torch.float64)
    sae.training_k = 11
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    fast = gradients(sae, "auto", x, torch.arange(40) < 9)
    assert int(fast["n"].sum()) == 11 * 30
    same(fast, gradients(sae, "reference", x, torch.arange(40) < 9), 1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if case != "topk"])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_of_equal_values_both_kernels_take_the_first(case: str, k: int) -> None:
    """Every token stands five times, and atoms twice: the last place goes to one of many that are equal."""
    sae = make_case(case, k=k, dtype=torch.float64)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc"):
            getattr(sae, name)[1::2] = getattr(sae, name)[0::2]
    x = torch.randn(7, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64).repeat_interleave(5, 0)
    fast, plain = gradients(sae, "auto", x, None), gradients(sae, "reference", x, None)
    assert int(fast["n"].sum()) == 35 * k
    same(fast, plain, 1e-12)


@every_case
def test_gradients_equal_finite_differences(case: str) -> None:
    sae = make_case(case, d_model=4, dictionary_size=10, k=3, dtype=torch.float64)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    grads = gradients(sae, "auto", x, None)
    for name, parameter in sae.named_parameters():
        for place in range(0, parameter.numel(), 3):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                    values.append(3.0 * float(sae.loss(x).total))
                    parameter.view(-1)[place] -= step
            slope = (values[0] - values[1]) / 2e-6
            assert float(grads[name].view(-1)[place]) == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_aux_reaches_the_encoder_of_dead_latents_and_no_bias_of_the_reconstruction(make_sae: Make) -> None:
    sae = make_sae(dtype=torch.float64)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    silent = int(sae.loss(x).counts.argmin())
    with torch.no_grad():
        sae.b_enc[silent] = sae.encode_sparse(x)[1].min() * 0.5 - 1.0
    dead = sae.loss(x).counts == 0
    assert bool(dead[silent])
    without, with_aux = gradients(sae, "auto", x, None), gradients(sae, "auto", x, dead)
    for name in ("W_enc", "W_dec", "b_enc"):
        assert not without[name][dead].any()
        assert with_aux[name][dead].abs().sum() > 0
        torch.testing.assert_close(without[name][~dead], with_aux[name][~dead])  # the residual is held constant


def test_zero_valued_picks_do_not_count_and_get_no_gradient(make_sae: Make) -> None:
    sae = make_sae(k=40)
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(6))
    terms = sae.loss(x)
    assert torch.equal(terms.counts, (sae.encode(x) > 0).sum(0))
    assert 0 < int(terms.counts.sum()) < 20 * 40
    with torch.no_grad():
        sae.b_enc[7] = -100.0
    grads = gradients(sae, "auto", x, None)
    assert not grads["W_enc"][7].any()
    assert not grads["W_dec"][7].any()


@every_case
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_no_nan_on_constant_input_perfect_reconstruction_or_a_wholly_dead_dictionary(case: str, kernel: str) -> None:
    dead = torch.ones(40, dtype=torch.bool)
    constant = make_case(case)
    at_bias = constant.b_dec.detach().expand(8, 12)
    for x in (torch.full((8, 12), 3.0), at_bias, torch.zeros(8, 12)):
        grads = gradients(constant, kernel, x, dead)
        assert all(torch.isfinite(value).all() for value in grads.values())
        assert float(grads["aux"]) == 0.0
    with torch.no_grad():
        constant.b_enc.fill_(-1e3)
    grads = gradients(constant, kernel, torch.randn(8, 12, generator=torch.Generator().manual_seed(1)), dead)
    assert all(torch.isfinite(value).all() for value in grads.values())
    assert not grads["n"].any()


def test_training_selects_what_encode_selects(make_sae: Make) -> None:
    sae = make_sae(dictionary_size=1024, k=8)
    x = torch.randn(2500, 12, generator=torch.Generator().manual_seed(8))  # several blocks
    with torch.no_grad():
        z = sae.encode(x)
    tracked = sae.encode(x)
    assert tracked.requires_grad
    assert torch.equal(z, tracked)
    assert torch.equal(sae.loss(x).counts, (z > 0).sum(0))


@every_case
def test_same_bytes_twice(case: str) -> None:
    x = torch.randn(2048, 12, generator=torch.Generator().manual_seed(9))
    dead = torch.arange(40) % 2 == 0
    first, second = (gradients(make_case(case), "auto", x, dead) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
