import pytest
import torch
from torch import Tensor

from plmsae.errors import UserError
from plmsae.saes import build
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.topk import TopK
from tests.saes.conftest import config_of, generic_sae


def by_hand() -> TopK:
    """Two dimensions, three atoms: e1, e2 and the diagonal; k = 1."""
    sae = build(config_of("topk", d_model=2, dictionary_size=3, k=1))
    assert isinstance(sae, TopK)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
        sae.W_enc.copy_(sae.W_dec)
        sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.0, -0.5]))
    return sae


def test_the_forward_pass_by_hand() -> None:
    sae = by_hand()
    x = torch.tensor([[4.0, 1.0], [1.0, 3.0], [4.0, 5.0], [0.0, 0.0]])
    # x - b_dec = (3,0) (0,2) (3,4) (-1,-1): pre-activations (3,0,1.3) (0,2,1.1) (3,4,4.5) (-1,-1,-1.9)
    wanted = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 4.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(sae.encode(x), wanted)
    torch.testing.assert_close(sae(x), torch.tensor([[4.0, 1.0], [1.0, 3.0], [3.7, 4.6], [1.0, 1.0]]))
    terms = sae.loss(x)
    # Squared errors 0, 0, 0.3^2 + 0.4^2, 1 + 1: summed over d, averaged over four tokens.
    assert float(terms.reconstruction) == pytest.approx((0.25 + 2.0) / 4)
    assert float(terms.total) == float(terms.reconstruction)
    assert terms.counts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_aux_k_by_hand(kernel: str) -> None:
    sae = by_hand()
    sae.kernel = kernel
    x = torch.tensor([[4.0, 1.0], [1.0, 3.0], [4.0, 5.0]])
    terms = sae.loss(x, torch.tensor([True, False, False]))
    # Residuals e: 0, 0, (0.3, 0.4); dead latent 0 has z = 3, 0, 3, so ê = (3,0), 0, (3,0), without the bias.
    error = 9.0 + 0.0 + (2.7**2 + 0.4**2)
    mean = torch.tensor([0.1, 0.4 / 3])
    e = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.3, 0.4]])
    variance = float((e - mean).square().sum())
    assert float(terms.aux) == pytest.approx(error / variance, rel=1e-5)
    assert float(terms.total) == pytest.approx(0.25 / 3 + error / variance / 32, rel=1e-5)


def sparse_rows(num_rows: int) -> Tensor:
    """48 directions in 16 dimensions, about 5 % of them present in a row."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(48, 16, generator=generator)
    x = (torch.randn(num_rows, 48, generator=generator) - 1.6).relu() @ directions
    return x / x.square().sum(1).mean().sqrt()


def train_with_silenced(alpha: float) -> tuple[SparseAutoencoder, list[float], Tensor]:
    """Train a while with 16 of 128 latents biased out of every top k."""
    sae = build(config_of("topk", d_model=16, dictionary_size=128, k=1, options={"aux_alpha": alpha}), seed=1)
    silenced, x, aux = torch.arange(128) < 16, sparse_rows(8000), []
    sae.initialise(torch.Generator().manual_seed(1), x.mean(0))
    with torch.no_grad():
        sae.b_enc[silenced] = -0.8
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
    for step in range(600):
        terms = sae.loss(x[torch.arange(step * 256, (step + 1) * 256) % 8000], silenced)
        optimizer.zero_grad()
        terms.total.backward()  # type: ignore[no-untyped-call]
        sae.constrain_gradients()
        optimizer.step()
        sae.constrain_weights()
        aux.append(float(terms.aux))
    return sae, aux, (sae.encode(x) > 0).any(0)[silenced]


def test_aux_k_brings_silent_latents_back() -> None:
    _, aux, back = train_with_silenced(1 / 32)
    _, _, without = train_with_silenced(0.0)
    assert sum(aux[-50:]) / 50 < aux[0] - 0.03  # they explain part of the residual that they did not at first
    assert int(back.sum()) > 0
    assert int(without.sum()) == 0


def test_initial_weights() -> None:
    sae = build(config_of("topk"), seed=4)
    assert isinstance(sae, TopK)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()
    center = torch.arange(12.0)
    sae.initialise(torch.Generator().manual_seed(4), center)
    assert torch.equal(sae.b_dec, center)


def test_folding_leaves_the_original_alone_and_shares_nothing() -> None:
    sae = generic_sae()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    folded = sae.folded(3.0)
    with torch.no_grad():
        folded.W_dec.zero_()  # type: ignore[operator]
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aux_k": 0}, "aux_k = 0"),
        ({"aux_k": 41}, "aux_k = 41"),
        ({"aux_k": 2.0}, r"aux_k = 2\.0"),
        ({"aux_alpha": -1.0}, r"aux_alpha = -1\.0"),
        ({"aux_alpha": float("nan")}, "aux_alpha = nan"),
        ({"aux_alpha": "1/32"}, "aux_alpha = '1/32'"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(config_of("topk", options=options))


def test_default_aux_k_is_half_the_width() -> None:
    sae = generic_sae()
    assert isinstance(sae, TopK)
    assert (sae.aux_k, sae.aux_alpha) == (6, 1 / 32)
