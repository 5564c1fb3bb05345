"""Attention over packed sequences against the formula in fp64, on both of its CPU paths."""

import pytest
import torch

from plmsae.plms import attention
from plmsae.plms.attention import attend
from plmsae.plms.network import Layout

LENGTHS = (300, 300, 40, 700)


@pytest.fixture(scope="module")
def qkv():
    return torch.randn(3, sum(LENGTHS), 3, 64, generator=torch.Generator().manual_seed(0))


def layout():
    return Layout(((0, 300, 2), (600, 40, 1), (640, 700, 1)), torch.empty(0))


def by_hand(qkv, scale, causal=False):
    parts, start = [], 0
    for length in LENGTHS:
        q, k, v = qkv[:, start : start + length].double()
        scores = torch.einsum("ihw,jhw->hij", q, k) * scale
        if causal:
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        parts.append(torch.einsum("hij,jhw->ihw", scores.softmax(-1), v).flatten(1))
        start += length
    return torch.cat(parts)


@pytest.mark.parametrize("scale", [1.0, 0.125])
@pytest.mark.parametrize("causal", [False, True])
def test_each_sequence_attends_to_itself(qkv, scale, causal):
    found = attend(*qkv, layout(), scale=scale, causal=causal)
    expected = by_hand(qkv, scale, causal)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_long_sequences_of_wide_heads_go_head_by_head_and_others_do_not(qkv, monkeypatch):
    if not attention.onednn_serves(qkv, qkv):
        pytest.skip("oneDNN does not serve fp32 here")
    seen = []
    real = attention._attend_by_head
    monkeypatch.setattr(attention, "_attend_by_head", lambda q, k, v, out: (seen.append(len(q)), real(q, k, v, out)))
    attend(*qkv, layout())
    assert seen == [300, 300, 700]
    attend(*qkv[..., :16], layout())
    attend(*qkv, layout(), causal=True)
    assert len(seen) == 3


def test_a_row_does_not_depend_on_what_else_is_packed(qkv):
    alone = attend(*qkv[:, 640:], Layout(((0, 700, 1),), torch.empty(0)))
    assert torch.equal(attend(*qkv, layout())[640:], alone)
