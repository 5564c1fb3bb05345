"""Training steps whose matrix products have bf16 factors: close to fp32, and nothing else is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from plmsae.errors import UserError
from plmsae.saes import build, trainable_architectures
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.products import multiply, product
from tests.saes.conftest import config_of, generic_sae

every = pytest.mark.parametrize("architecture", trainable_architectures())
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)


def made(architecture: str, precision: str) -> SparseAutoencoder:
    k = 8 if architecture in ("topk", "batch_topk", "matryoshka") else 128
    changes: dict[str, Any] = {"options": {"group_sizes": [16, 112]}} if architecture == "matryoshka" else {}
    sae = generic_sae(architecture, d_model=24, dictionary_size=128, k=k, **changes)
    sae.prepare_training("auto", precision)
    return sae


def batch(num_rows: int = 96) -> Tensor:
    return torch.randn(num_rows, 24, generator=torch.Generator().manual_seed(1))


def step(sae: SparseAutoencoder, dead: Tensor | None = None) -> dict[str, Tensor]:
    sae.zero_grad()
    terms = sae.loss(batch(), dead)
    terms.total.backward()  # type: ignore[no-untyped-call]
    out = {name: parameter.grad for name, parameter in sae.named_parameters() if parameter.grad is not None}
    return {**out, "total": terms.total.detach(), "reconstruction": terms.reconstruction, "aux": terms.aux}


class Products(TorchDispatchMode):
    """Records the dtypes and numbers of operations of the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in PRODUCTS:
            a, b = [item for item in args if isinstance(item, Tensor)][-2:]
            if a.shape[0] == 1:  # a sum over tokens times the weights: a vector, which stays fp32
                return func(*args, **dict(kwargs or {}))
            self.seen.append((a.dtype, a.shape[0] * a.shape[1] * b.shape[1]))
        return func(*args, **dict(kwargs or {}))


@every
def test_the_step_is_close_to_that_in_fp32_and_not_equal(architecture: str) -> None:
    dead = torch.arange(128) < 40
    wide, narrow = (step(made(architecture, precision), dead) for precision in ("float32", "bfloat16"))
    assert set(wide) == set(narrow)
    for name, tensor in wide.items():
        assert narrow[name].dtype == torch.float32
        # A latent that is picked in place of another, or a threshold that is just passed, changes its own rows.
        off = float((narrow[name] - tensor).norm() / tensor.norm().clamp_min(1e-6))
        assert off < 0.15, name
    assert float((narrow["total"] / wide["total"] - 1).abs()) < 5e-3
    assert not torch.equal(wide["W_dec"], narrow["W_dec"])


@every
def test_every_product_is_in_bf16_and_no_weight_is(architecture: str) -> None:
    sae = made(architecture, "bfloat16")
    with Products() as products:
        step(sae, torch.arange(128) < 40)
    assert products.seen
    assert {dtype for dtype, _ in products.seen} == {torch.bfloat16}
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
    encoder = 96 * 24 * 128
    assert sum(size for _, size in products.seen) >= encoder


@every
def test_encoding_is_not_affected(architecture: str) -> None:
    wide, narrow = (made(architecture, precision) for precision in ("float32", "bfloat16"))
    assert torch.equal(wide.encode(batch()), narrow.encode(batch()))


def test_the_stated_bound_holds_and_is_felt() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 70, generator=generator).exp(), torch.randn(70, 60, generator=generator).exp()
    exact = a.double() @ b.double()
    error = (multiply(a, b, "bfloat16").double() - exact).abs()
    norms = a.double().norm(dim=1, keepdim=True) * b.double().norm(dim=0)
    assert bool((error <= (2.0**-8 + 2.0**-18) * norms + 2.0**-9 * exact.abs() * 1.01).all())
    assert float(error.max()) > 1e-4 * float(exact.max())
    assert multiply(a, b, "float32").equal(a @ b)


def test_gradients_of_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).bfloat16().float() for shape in ((5, 7), (7, 3)))
    a, b = a.requires_grad_(), b.requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5])
    (product(a, b, "bfloat16") * weights).sum().backward()  # type: ignore[no-untyped-call]
    # The factors are bf16 numbers already, so only the rounding of the result is left.
    torch.testing.assert_close(a.grad, weights.expand(5, 3) @ b.detach().t(), rtol=2.0**-8, atol=1e-3)
    torch.testing.assert_close(b.grad, a.detach().t() @ weights.expand(5, 3), rtol=2.0**-8, atol=1e-3)


def test_what_there_is_no_step_for_is_refused_in_words() -> None:
    sae = build(config_of("topk"))
    with pytest.raises(UserError, match="'reference' is the papers' step in fp32"):
        sae.prepare_training("reference", "bfloat16")
    assert (sae.kernel, sae.precision) == ("auto", "float32")
    sae.prepare_training("reference", "float32")
    with pytest.raises(UserError, match="'pca' has no training step in bfloat16") as error:
        build(config_of("pca")).prepare_training("auto", "bfloat16")
    assert "float32" in (error.value.fix or "")
