import pytest
import torch

from plmsae.errors import UserError
from plmsae.saes import build
from plmsae.saes.matryoshka import FRACTIONS, Matryoshka, sizes_of
from tests.saes.by_hand import ROWS, by_hand
from tests.saes.conftest import config_of, generic_sae

# With k = 1 rows 0 and 2 fire (3, 0, 0) and (3, 4, 4.5), see test_batch_topk. Squared errors by row, summed:
# bias alone 9 + 4 + 25 + 2; first latent alone 0 + 4 + 16 + 2; all three 0 + 4 + 20.25 + 2.
BIAS, FIRST, WHOLE = 40 / 4, 22 / 4, 26.25 / 4


@pytest.mark.parametrize(
    ("reduction", "wanted"),
    [
        ("paper", FIRST + WHOLE),
        ("dictionary_learning", (FIRST / 2 + WHOLE / 2) / 2),
        ("reference", (BIAS + FIRST + WHOLE) / 3),
    ],
)
def test_reductions_by_hand(reduction: str, wanted: float) -> None:
    sae = by_hand(Matryoshka, "matryoshka", k=1, group_sizes=[1, 2], reduction=reduction)
    assert (sae.groups, sae.prefixes) == ((1, 2), (1, 3))
    terms = sae.loss(ROWS)
    assert float(terms.total) == pytest.approx(wanted)
    assert float(terms.reconstruction) == pytest.approx(WHOLE)  # of the whole dictionary, whatever the reduction


def test_the_last_prefix_is_the_whole_and_each_one_ignores_later_latents() -> None:
    sae = generic_sae("matryoshka")
    assert isinstance(sae, Matryoshka)
    x = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    z = sae.encode(x)
    for size, x_hat in zip(sae.prefixes, sae.prefix_reconstructions(z), strict=True):
        cut = z.clone()
        cut[:, size:] = 0.0
        torch.testing.assert_close(x_hat, sae.decode(cut))
    torch.testing.assert_close(sae.prefix_reconstructions(z)[-1], sae(x))


def test_one_group_is_batch_topk() -> None:
    one, plain = generic_sae("matryoshka", options={"group_sizes": [40]}), generic_sae("batch_topk")
    x, dead = torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), torch.arange(40) < 9
    torch.testing.assert_close(one.loss(x, dead).total, plain.loss(x, dead).total)


@pytest.mark.parametrize(
    ("name", "size", "wanted"),
    [("steering", 20480, [40, 319, 2560, 17561]), ("steering", 10240, [20, 159, 1280, 8781]),
     ("power_law", 10240, [279, 437, 777, 1748, 6999])],
)  # fmt: skip
def test_published_fractions_give_the_published_sizes(name: str, size: int, wanted: list[int]) -> None:
    assert sizes_of(FRACTIONS[name], size) == wanted
    assert sum(wanted) == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_sizes": [4, 12, 23]}, "sum to 39, not to the dictionary of 40"),
        ({"group_sizes": [0, 40]}, "not a list of whole numbers"),
        ({"group_sizes": [20.0, 20.0]}, "not a list of whole numbers"),
        ({"group_sizes": []}, "not a list of whole numbers"),
        ({"group_sizes": 40}, "not a list of whole numbers"),
        ({"group_sizes": [40], "reduction": "sum"}, "reduction = 'sum'"),
        ({"group_size": [40]}, "no option 'group_size'"),
    ],
)
def test_groups_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(config_of("matryoshka", options=options))
    assert error.value.fix


@pytest.mark.parametrize("fractions", [(), (0.5, 0.4), (0.0, 1.0), (-0.5, 1.5), (float("nan"), 1.0)])
def test_fractions_that_are_no_shares_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        sizes_of(fractions, 100)


def test_the_default_is_the_power_law_and_too_small_a_dictionary_says_so() -> None:
    sae = build(config_of("matryoshka", options={}))
    assert isinstance(sae, Matryoshka)
    assert sae.groups == (1, 1, 3, 6, 29)
    with pytest.raises(UserError, match="at least 1"):
        build(config_of("matryoshka", dictionary_size=20, options={}))
