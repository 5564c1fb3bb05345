"""The edit by hand, and inside the real model: what it changes and what it must not."""

# ruff: noqa: F401, F811  (fixtures of the evaluation tests are imported by name)
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from plmsae.errors import DataError, UserError
from plmsae.plms.base import Edit, ProteinLM
from plmsae.saes import SaeConfig, build
from plmsae.saes.base import SparseAutoencoder
from plmsae.steering.choice import checked_latent, choose_latent
from plmsae.steering.clamp import Clamp, SameSizeMove, moved, random_directions
from plmsae.steering.inputs import Source
from tests.evaluation.conftest import LAYER, LETTERS, letter_sae, plm, random_sae, sequences, store

SEQUENCE = "MKTAYIAKQRQISFVKSHFSRQ"


def tiny_sae() -> SparseAutoencoder:
    """Two latents in three dimensions, one per token: z0 = x0 - 1, z1 = 2 x1; atoms (0, 0, 2) and (0, 3, 0)."""
    config = SaeConfig(
        architecture="topk",
        d_model=3,
        dictionary_size=2,
        k=1,
        plm="p",
        plm_revision="r",
        layer=1,
        hook="residual",
        normaliser={"kind": "rms", "scale": 4.0, "folded": True},
    )
    sae = build(config).requires_grad_(False)
    sae.W_enc.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
    sae.W_dec.copy_(torch.tensor([[0.0, 0, 2], [0, 3, 0]]))
    sae.b_enc.copy_(torch.tensor([-1.0, 0]))
    sae.latent_max.copy_(torch.tensor([5.0, 0.0]))
    return sae


X = torch.tensor([[3.0, 0, 0], [3, 4, 0], [1, 1, 1], [7, 0, -1]])
EVERYWHERE = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("strength", "thirds"),
    [
        # Latent 0 is 2, 0 (latent 1 wins the one place), 0, 6; held at 5, atom (0, 0, 2): 2 s (5 - f) along axis 2.
        (1.0, [6.0, 10.0, 11.0, -3.0]),
        (0.5, [3.0, 5.0, 6.0, -2.0]),
        (0.0, [0.0, 0.0, 1.0, -1.0]),
    ],
)
def test_the_edit_by_hand(strength: float, thirds: list[float]) -> None:
    clamp = Clamp(tiny_sae(), 0, 5.0, strength, EVERYWHERE)
    out = clamp(X)
    assert out[:, 2].tolist() == thirds
    assert torch.equal(out[:, :2], X[:, :2])
    assert clamp.activation.tolist() == [2, 0, 0, 6]
    assert clamp.amount.tolist() == [5 * strength - 2 * strength, 5 * strength, 5 * strength, -strength]


def test_the_edit_is_the_reconstruction_with_the_latent_set_and_the_error_put_back() -> None:
    sae = tiny_sae()
    z = sae.encode(X)
    error = X - sae.decode(z)
    z[:, 0] = 5.0
    torch.testing.assert_close(Clamp(sae, 0, 5.0, 1.0, EVERYWHERE)(X), sae.decode(z) + error)


def test_residues_that_are_not_chosen_and_those_at_the_value_keep_their_bits() -> None:
    x = X.clone()
    x[1] = torch.tensor([-0.0, 4.0, -0.0])
    edited = torch.tensor([True, False, True, True])
    out = Clamp(tiny_sae(), 0, 2.0, 1.0, edited)(x)
    for row in (0, 1):  # row 0 is at 2 already, row 1 is not chosen
        assert out[row].view(torch.int32).tolist() == x[row].view(torch.int32).tolist()
    assert out[3, 2] == -1 + (2 - 6) * 2


def test_the_control_moves_each_residue_by_the_same_length() -> None:
    sae = tiny_sae()
    clamp = Clamp(sae, 0, 5.0, 0.7, torch.tensor([True, False, True, True]))
    lengths = (clamp(X) - X).norm(dim=1)
    for direction in random_directions(5, 3, seed=1):
        out = SameSizeMove(clamp, direction)(X)
        torch.testing.assert_close((out - X).norm(dim=1), lengths)
        assert torch.equal(out[1], X[1])


def test_random_directions_are_unit_vectors_and_repeat() -> None:
    first = random_directions(50, 64, seed=3)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(50))
    assert torch.equal(first, random_directions(50, 64, seed=3))
    assert not torch.equal(first, random_directions(50, 64, seed=4))
    assert float((first @ first.T - torch.eye(50)).abs().max()) < 0.6


def clamped(plm: ProteinLM, sae: SparseAutoencoder, strength: float, edited: Tensor | None = None) -> Tensor:
    edited = torch.ones(len(SEQUENCE), dtype=torch.bool) if edited is None else edited
    function = Clamp(sae, 7, 3.0, strength, edited)
    return plm.logits(plm.tokenize([SEQUENCE]), Edit(sae.config.layer, "residual", function))


@pytest.mark.parametrize("layer", [0, LAYER, 6])
def test_strength_zero_is_the_model_itself_bit_for_bit(plm: ProteinLM, store: Path, layer: int) -> None:
    sae = random_sae(plm, store, layer=min(layer, plm.num_layers))
    clean = plm.logits(plm.tokenize([SEQUENCE]))
    assert torch.equal(clamped(plm, sae, 0.0), clean)
    assert not torch.equal(clamped(plm, sae, 1.0), clean)


def test_only_residues_are_edited_never_cls_and_eos(plm: ProteinLM, store: Path) -> None:
    """One token per residue reaches the edit, and what lies at the other rows of its layer stays as it was."""
    sae = random_sae(plm, store)
    seen = []
    clamp = Clamp(sae, 7, 3.0, 1.0, torch.ones(2 * len(SEQUENCE), dtype=torch.bool))

    def function(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return clamp(x)

    tokens = plm.tokenize([SEQUENCE, SEQUENCE[::-1]])
    edited = []
    run, width = plm._network.block, plm.d_model  # type: ignore[attr-defined]

    def block(index: int, hidden: Tensor, *rest: object) -> Tensor:
        if index == LAYER:  # the block that reads the edited stream
            edited.append(hidden.clone())
        return run(index, hidden, *rest)

    plm._network.block = block  # type: ignore[attr-defined]
    try:
        plm.logits(tokens)
        plm.logits(tokens, Edit(LAYER, "residual", function))
    finally:
        del plm._network.block  # type: ignore[attr-defined]
    assert seen == [torch.Size([2 * len(SEQUENCE), width])]
    clean, steered = edited
    assert torch.equal(steered[~tokens.residues], clean[~tokens.residues])
    assert (~tokens.residues).sum() == 4
    assert bool((steered[tokens.residues] != clean[tokens.residues]).any(dim=1).all())


def test_the_edit_is_linear_in_the_strength(plm: ProteinLM, store: Path) -> None:
    """The hidden state moves along one line, twice as far at twice the strength."""
    sae = random_sae(plm, store)
    x = plm.hidden(plm.tokenize([SEQUENCE]), LAYER)
    everywhere = torch.ones(len(x), dtype=torch.bool)
    half, whole = (Clamp(sae, 7, 30.0, strength, everywhere)(x) - x for strength in (0.5, 1.0))
    torch.testing.assert_close(2 * half, whole, rtol=1e-4, atol=1e-4)
    directions = torch.nn.functional.normalize(whole, dim=1)
    atom = torch.nn.functional.normalize(sae.atoms[7], dim=0)
    torch.testing.assert_close((directions @ atom).abs(), torch.ones(len(x)), rtol=1e-4, atol=1e-4)


def test_a_residue_that_is_edited_changes_what_is_predicted_elsewhere(plm: ProteinLM, store: Path) -> None:
    edited = torch.zeros(len(SEQUENCE), dtype=torch.bool)
    edited[4] = True
    sae = random_sae(plm, store)
    sae.W_dec.mul_(50)
    change = (clamped(plm, sae, 1.0, edited) - plm.logits(plm.tokenize([SEQUENCE]))).abs().amax(dim=1)
    assert int(change.argmax()) == 4
    assert bool((change > 0).all())


def test_holding_a_letter_makes_the_model_read_that_letter(plm: ProteinLM) -> None:
    """Latent 18 of the letter SAE is W at layer 0; adding it to a residue (whose own letter stays) makes W likely."""
    sae = letter_sae(plm)
    tokens = plm.tokenize([SEQUENCE])
    edited = torch.zeros(len(SEQUENCE), dtype=torch.bool)
    edited[9] = True
    clamp = Clamp(sae, LETTERS.index("W"), 3.0, 1.0, edited)
    moves = [SameSizeMove(clamp, direction) for direction in random_directions(5, plm.d_model, seed=0)]
    every = plm.logits_each(tokens, [None, Edit(0, "residual", clamp), *(Edit(0, "residual", move) for move in moves)])
    clean, steered, *controls = (float(logits.softmax(dim=1)[9, plm.vocabulary["W"]]) for logits in every)
    assert steered > 0.2
    assert steered > 10 * max(clean, *controls)


def test_a_latent_that_is_not_there_or_dead_is_refused() -> None:
    sae = tiny_sae()
    assert checked_latent(sae, 0) == 0
    with pytest.raises(UserError, match="latent 1 is dead") as error:
        checked_latent(sae, 1)
    assert error.value.where == "steer.latent"
    with pytest.raises(UserError, match="no latent 2") as error:
        checked_latent(sae, 2)
    assert "0 to 1" in str(error.value.fix)
    sae.latent_max.zero_()
    with pytest.raises(DataError, match="not known"):
        checked_latent(sae, 0)


def test_the_choice_by_hand(plm: ProteinLM) -> None:
    """Letters as latents: the most frequent letter among those on at most a tenth of the residues."""
    source = Source(plm, letter_sae(plm))
    # 20 residues: 4 A (too common), 2 W and 2 C (a tenth each), 1 of the others.
    sequence = "AAAAWWCCDEFGHIKLMNPQ"
    assert choose_latent(source, [[sequence]], threads=1) == LETTERS.index("C")
    # Two batches are counted together: 3 of 40 are W now, 2 are C.
    assert choose_latent(source, [[sequence], ["WAAAADEFGHIKLMNPQRST"]], threads=2) == LETTERS.index("W")
    # Every latent is too common: the most frequent one.
    assert choose_latent(source, [["AAC"]], threads=1) == LETTERS.index("A")


def test_an_sae_in_which_nothing_fires_is_refused(plm: ProteinLM) -> None:
    sae = letter_sae(plm)
    sae.latent_max.zero_()
    with pytest.raises(DataError, match="none of the 20 latents"):
        choose_latent(Source(plm, sae), [["ACD"]], threads=1)


def test_a_move_that_overflows_is_refused(plm: ProteinLM, store: Path) -> None:
    sae = random_sae(plm, store)
    sae.W_dec.mul_(1e38)
    with pytest.raises(DataError, match="not finite"):
        clamped(plm, sae, 1.0)


def test_moved_keeps_negative_zero() -> None:
    x = torch.tensor([[-0.0, 1.0]])
    assert torch.signbit(moved(x, torch.zeros(1), torch.ones(2)))[0, 0]


@pytest.mark.parametrize("normaliser", [{"kind": "layer_norm", "epsilon": 1e-5}, {"kind": "token_rms"}])
def test_an_edit_goes_by_the_scale_of_the_token(normaliser: dict[str, object]) -> None:
    """h + sigma_t (c - f_t) d: the reconstruction with the latent set, and the error put back."""
    sae = tiny_sae()
    sae.config = sae.config.replace(normaliser=normaliser)
    x = torch.tensor([[30.0, 1, -2], [3, 4, 0.5], [0.1, -0.1, 0.2], [0, 0, 0]])
    z = sae.encode(x)
    error = x - sae.decode(z, x)
    z[:, 0] = 5.0
    clamp = Clamp(sae, 0, 5.0, 1.0, EVERYWHERE)
    torch.testing.assert_close(clamp(x), sae.decode(z, x) + error)
    sigma = x.std(1) if normaliser["kind"] == "layer_norm" else x.square().mean(1).sqrt()
    torch.testing.assert_close(clamp.amount, (5.0 - clamp.activation) * sigma)
    assert torch.equal(Clamp(sae, 0, 5.0, 0.0, EVERYWHERE)(x), x)
    same_size = SameSizeMove(clamp, torch.tensor([0.0, 1.0, 0.0]))(x)
    torch.testing.assert_close((same_size - x).norm(dim=1), (clamp(x) - x).norm(dim=1))
