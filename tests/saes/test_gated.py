import math

import pytest
import torch

from plmsae.saes.gated import Gated
from tests.saes.by_hand import ROWS, by_hand, fill


def small() -> Gated:
    sae = by_hand(Gated, "gated", k=3, penalty=0.1)
    fill(sae.b_gate, [0.0, 0.0, -1.7])
    fill(sae.b_mag, [-1.0, 0.5, -0.5])
    fill(sae.r_mag, [math.log(2), 0.0, 0.0])
    return sae


def test_by_hand() -> None:
    sae = small()
    # Gates (3, 0, 0.1), (0, 2, -0.1), (3, 4, 3.3), all below 0; values 2h - 1, h + 0.5, h - 0.5 where they are open.
    wanted = torch.tensor([[5.0, 0.0, 1.3], [0.0, 2.5, 0.0], [5.0, 4.5, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(sae.encode(ROWS), wanted)
    terms = sae.terms(ROWS)
    error = ((5 + 0.78 - 3) ** 2 + 1.04**2 + 0.5**2 + (5 + 2.7 - 3) ** 2 + (4.5 + 3.6 - 4) ** 2 + 2) / 4
    penalty = (3 + 0.1 + 2 + 3 + 4 + 3.3) / 4
    aux = (0.1**2 + 0 + 3.3**2 + 2) / 4  # the gates of e1 and e2 reconstruct rows 0 to 2 by themselves
    assert [float(value) for value in terms.values.values()] == pytest.approx([error, penalty, aux], rel=1e-5)
    assert float(terms.total) == pytest.approx(error + 0.1 * penalty + aux, rel=1e-5)
    loss = sae.loss(ROWS)
    assert float(loss.aux) == pytest.approx(penalty, rel=1e-5)
    assert loss.counts.tolist() == [2, 2, 2]


def test_the_penalty_does_not_pull_on_the_values() -> None:
    sae = small()
    penalty = sae.terms(ROWS).values["penalty"]
    found = torch.autograd.grad(penalty, [sae.b_gate, sae.b_mag, sae.r_mag], allow_unused=True)
    torch.testing.assert_close(found[0], torch.tensor([2.0, 2.0, 2.0]) / 4)
    assert found[1] is None
    assert found[2] is None


def test_a_closed_gate_silences_a_large_value() -> None:
    sae = small()
    with torch.no_grad():
        sae.b_gate.fill_(-100.0)
        sae.b_mag.fill_(100.0)
    assert not sae.encode(ROWS).any()
    torch.testing.assert_close(sae(ROWS), torch.ones(4, 2))
