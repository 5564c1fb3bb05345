from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from plmsae.plms import linear as module
from plmsae.plms.linear import kernel, linear, linear_add, linear_gelu


@pytest.fixture(params=["found", "aten"])
def _kernel(request, monkeypatch):
    if request.param == "aten":
        monkeypatch.setattr(module, "_operators", lambda: None)
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
