"""The encoder's product without the one that only b_dec's gradient would need."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from plmsae.saes.base import SparseAutoencoder

Make = Callable[..., SparseAutoencoder]


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_gradients_are_those_of_autograd_for_fewer_products(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture, dtype=torch.float64)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found: dict[str, tuple[int, Tensor, dict[str, Tensor]]] = {}
    for kernel in ("auto", "reference"):
        sae.kernel = kernel
        sae.zero_grad()
        with FlopCounterMode(display=False) as counter:
            total = sae.loss(x).total
            (3.0 * total).backward()  # type: ignore[no-untyped-call]
        gradients = {
            name: parameter.grad.clone() for name, parameter in sae.named_parameters() if parameter.grad is not None
        }
        found[kernel] = counter.get_total_flops(), total.detach(), gradients
    fast, plain = found["auto"], found["reference"]
    assert torch.equal(fast[1], plain[1])
    assert set(fast[2]) == set(plain[2]) == {name for name, _ in sae.named_parameters()}
    for name, gradient in plain[2].items():
        torch.testing.assert_close(fast[2][name], gradient, rtol=1e-12, atol=1e-12)
    product, vector = 2 * 50 * 12 * 40, 2 * 12 * 40
    assert plain[0] - fast[0] == pytest.approx(product, abs=2 * vector)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_activations_that_need_a_gradient_get_one(make_sae: Make, architecture: str) -> None:
    sae = make_sae(architecture, dtype=torch.float64)
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sae.encode(x).sum(0), (x,), eps=1e-7)
