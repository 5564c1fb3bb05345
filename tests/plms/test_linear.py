from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from plmsae.plms import linear as module
from plmsae.plms.linear import has_fast_bfloat16, kernel, linear, linear_add, linear_gelu


@pytest.fixture(params=["found", "aten"])
def _kernel(request, monkeypatch):
    if request.param == "aten":
        monkeypatch.setattr(module, "_operators", lambda dtype: None)
        assert kernel() == "aten"


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("rows", [1, 5, 257])
@pytest.mark.parametrize(("width", "out"), [(192, 576), (768, 192), (24, 33)])
def test_equal_to_double_precision(rows, width, out):
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, width, generator=generator) for n in (rows, out))
    bias, residual = torch.randn(out, generator=generator), torch.randn(rows, out, generator=generator)
    expected = F.linear(x.double(), weight.double(), bias.double())
    tolerance = {"rtol": 0.0, "atol": 1e-6 * width**0.5 * 10}
    torch.testing.assert_close(linear(x, weight, bias).double(), expected, **tolerance)
    torch.testing.assert_close(linear_gelu(x, weight, bias).double(), F.gelu(expected), **tolerance)
    before = residual.clone()
    torch.testing.assert_close(
        linear_add(x, weight, bias, residual).double(), expected + residual.double(), **tolerance
    )
    assert torch.equal(residual, before)
    torch.testing.assert_close(linear(x, weight, None).double(), expected - bias.double(), **tolerance)


@pytest.mark.usefixtures("_kernel")
def test_gelu_is_the_exact_one_over_its_whole_range():
    x = torch.linspace(-12, 12, 4001)[:, None]
    actual = linear_gelu(x, torch.ones(1, 1), torch.zeros(1))
    expected = x.double() * 0.5 * (1 + torch.erf(x.double() / 2**0.5))
    assert (actual.double() - expected).abs().max() < 2e-6


@pytest.mark.usefixtures("_kernel")
def test_a_weight_in_bfloat16_rounds_what_enters_and_leaves_the_product_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 512, generator=generator) for n in (300, 96))
    bias, residual = 100 * torch.randn(96, generator=generator), 1000 * torch.randn(300, 96, generator=generator)
    reduced = weight.bfloat16()
    exact = F.linear(x.bfloat16().double(), reduced.double())
    one_rounding = 2**-8 * (exact.abs().max() + bias.abs().max())
    assert linear(x, reduced, bias).dtype == linear_add(x, reduced, bias, residual).dtype == torch.float32
    for actual, expected in (
        (linear(x, reduced, bias), exact + bias),
        (linear(x, reduced, None), exact),
        (linear_gelu(x, reduced, bias), F.gelu(exact + bias)),
        (linear_add(x, reduced, bias, residual), exact + bias + residual),  # rounding the sum would cost 4 here
    ):
        assert (actual.double() - expected).abs().max() <= one_rounding
    wide = linear_gelu(x, reduced, bias, keep_type=True)
    assert wide.dtype == torch.bfloat16
    assert torch.equal(linear_gelu(x, weight, bias, keep_type=True), linear_gelu(x, weight, bias))


def test_the_processor_is_asked(monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert not has_fast_bfloat16()
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: True)
    assert has_fast_bfloat16() == (module._operators(torch.bfloat16) is not None)
