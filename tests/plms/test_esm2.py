"""The contract of a protein language model, over the bundled LM and random ones, against transformers."""

from __future__ import annotations

import pytest
import torch

from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from plmsae.plms.base import Edit
from tests.plms.conftest import random_sequences

LENGTHS = (7, 60, 1, 60, 60, 33, 118, 2)
# Rounding of fp32 sums in another order, relative to the largest value of the layer.
TOLERANCE = 2e-5


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.fixture(params=["plain", "masked"])
def tokens(request, pair):
    tokens = pair.plm.tokenize(random_sequences(LENGTHS))
    if request.param == "masked":
        # Different masked shares per sequence, none in some of them: the token-dropout scale is per sequence.
        tokens = pair.plm.with_masked(tokens, torch.tensor([0, 1, 2, 8, 70, 71, 72, 73, 200, 340]))
    return tokens


def test_every_layer_and_the_logits_equal_those_of_transformers(pair, tokens):
    hidden, logits = pair.expected(tokens)
    assert len(hidden) == pair.plm.num_layers + 1
    for layer, expected in enumerate(hidden):
        actual = pair.plm.hidden(tokens, layer)
        assert actual.dtype == torch.float32
        assert_close(actual, expected)
    assert_close(pair.plm.logits(tokens), logits)


def test_last_layer_is_after_the_final_norm(pair):
    tokens = pair.plm.tokenize(random_sequences(LENGTHS))
    captured = {}
    hook = pair.reference.esm.encoder.layer[-1].register_forward_hook(lambda m, i, o: captured.setdefault("raw", o))
    expected = pair.expected(tokens)[0][-1]
    hook.remove()
    raw = captured["raw"][0] if isinstance(captured["raw"], tuple) else captured["raw"]
    last = pair.plm.hidden(tokens, pair.plm.num_layers)
    assert_close(last, expected)
    assert not torch.allclose(last[: LENGTHS[0]], raw[0, 1 : LENGTHS[0] + 1], rtol=0.1)


def test_one_row_per_residue_and_none_for_specials(pair):
    sequences = random_sequences(LENGTHS)
    tokens = pair.plm.tokenize(sequences)
    assert tokens.num_residues == sum(LENGTHS)
    assert tokens.lengths.tolist() == [length + 2 for length in LENGTHS]
    letters = {index: token for token, index in pair.plm.vocabulary.items()}
    assert "".join(letters[i] for i in pair.plm.residue_ids(tokens).tolist()) == "".join(sequences)
    assert pair.plm.hidden(tokens, 1).shape == (sum(LENGTHS), pair.plm.d_model)
    assert pair.plm.logits(tokens).shape == (sum(LENGTHS), len(pair.plm.vocabulary))


def test_a_sequence_does_not_depend_on_its_batch(pair):
    sequences = random_sequences(LENGTHS)
    for layer in (0, 2, pair.plm.num_layers):
        together = pair.plm.hidden(pair.plm.tokenize(sequences), layer).split(LENGTHS)
        for sequence, expected in zip(sequences, together, strict=True):
            assert_close(pair.plm.hidden(pair.plm.tokenize([sequence]), layer), expected)


def test_permuting_the_batch_permutes_the_rows(pair):
    sequences = random_sequences(LENGTHS)
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    expected = pair.plm.hidden(pair.plm.tokenize(sequences), 2).split(LENGTHS)
    permuted = pair.plm.hidden(pair.plm.tokenize([sequences[i] for i in order]), 2)
    assert_close(permuted, torch.cat([expected[i] for i in order]))


def test_identity_edit_is_exact_at_every_layer(pair, tokens):
    expected = pair.plm.logits(tokens)
    for layer in range(pair.plm.num_layers + 1):
        seen = []

        def identity(rows, seen=seen):
            seen.append(rows.clone())
            return rows

        assert torch.equal(pair.plm.logits(tokens, Edit(layer, "residual", identity)), expected)
        assert torch.equal(seen[0], pair.plm.hidden(tokens, layer))


def test_edit_changes_residue_rows_only_and_reaches_the_logits(pair):
    """An edit inside the model equals transformers with the same change made by a hook on the block's output."""
    plm, tokens = pair.plm, pair.plm.tokenize(random_sequences(LENGTHS))
    delta = torch.linspace(-1, 1, plm.d_model)
    residues = torch.nn.utils.rnn.pad_sequence(tokens.residues.split(tokens.lengths.tolist()), batch_first=True)

    def change(module, inputs, output):
        raw = output[0] if isinstance(output, tuple) else output
        new = raw + delta * residues[..., None]
        return (new, *output[1:]) if isinstance(output, tuple) else new

    hook = pair.reference.esm.encoder.layer[1].register_forward_hook(change)
    expected = pair.expected(tokens)[1]
    hook.remove()
    assert_close(plm.logits(tokens, Edit(2, "residual", lambda rows: rows + delta)), expected)


def test_edit_after_the_final_norm_goes_straight_to_the_head(pair):
    plm, tokens = pair.plm, pair.plm.tokenize(random_sequences((5, 9)))
    rows = torch.randn(14, plm.d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pair.reference.lm_head(rows)
    assert_close(plm.logits(tokens, Edit(plm.num_layers, "residual", lambda _: rows)), expected)


def test_edit_does_not_write_through_to_the_caller(pair):
    """A function that changes its argument in place must not change what an un-edited call sees."""
    tokens = pair.plm.tokenize(random_sequences((5, 9)))
    before = pair.plm.logits(tokens)
    pair.plm.logits(tokens, Edit(0, "residual", lambda rows: rows.zero_()))
    assert torch.equal(pair.plm.logits(tokens), before)


def test_logits_of_several_edits_are_those_of_each_alone(pair, tokens):
    def edit(layer, shift):
        return Edit(layer, "residual", lambda rows: rows.mul_(0.5).add_(shift))

    last = pair.plm.num_layers
    for edits in (
        [None, edit(2, 1.0), edit(1, 0.5), edit(2, -1.0), None],
        [edit(last, 0.1), None],
        [edit(0, 1.0)],
        [None],
        [],
    ):
        together = list(pair.plm.logits_each(tokens, edits))
        assert len(together) == len(edits)
        for found, each in zip(together, edits, strict=True):
            assert torch.equal(found, pair.plm.logits(tokens, each))


def test_masking_is_by_residue_row(pair):
    tokens = pair.plm.tokenize(["ACD", "EF"])
    masked = pair.plm.with_masked(tokens, torch.tensor([0, 4]))
    mask = pair.plm.mask_id
    assert masked.ids.tolist() == [0, mask, 23, 13, 2, 0, 9, mask, 2]
    assert tokens.ids.tolist() == [0, 5, 23, 13, 2, 0, 9, 18, 2]
    assert tokens.with_residues(torch.tensor([1, 3]), torch.tensor([4, 5])).ids.tolist() == [
        0,
        5,
        4,
        13,
        2,
        0,
        5,
        18,
        2,
    ]


@pytest.mark.parametrize("layer", [-1, 99])
def test_layer_out_of_range_names_the_range(pair, layer):
    tokens = pair.plm.tokenize(["ACD"])
    for call in (
        lambda: pair.plm.hidden(tokens, layer),
        lambda: pair.plm.logits(tokens, Edit(layer, "residual", lambda rows: rows)),
    ):
        with pytest.raises(UserError, match=rf"no layer {layer}(.|\n)* to {pair.plm.num_layers} ") as caught:
            call()
        assert caught.value.exit_code == 2


def test_unknown_hook(pair):
    with pytest.raises(UserError, match=r"no hook 'residul'(.|\n)*did you mean 'residual'"):
        pair.plm.hidden(pair.plm.tokenize(["ACD"]), 1, "residul")


def test_edits_that_break_the_contract(pair):
    tokens = pair.plm.tokenize(["ACD"])
    with pytest.raises(UserError, match=r"returned shape \[2, \d+\] for rows of shape \[3, \d+\]"):
        pair.plm.logits(tokens, Edit(1, "residual", lambda rows: rows[:2]))
    with pytest.raises(DataError, match="not finite"):
        pair.plm.logits(tokens, Edit(1, "residual", lambda rows: rows / 0))


def test_a_sequence_longer_than_the_model_takes(tiny_folder):
    plm = load_plm(str(tiny_folder))
    assert plm.max_residues == 200
    assert plm.tokenize(["A" * 200]).num_residues == 200
    with pytest.raises(DataError, match=r"201 residues is longer than .* takes \(200\)(.|\n)*P12345"):
        plm.tokenize(["ACD", "A" * 201], ["P00001", "P12345"])


def test_bundled_lm_takes_1022_residues():
    assert load_plm("esm_small").max_residues == 1022


def test_results_repeat_bit_for_bit(pair, tokens):
    assert torch.equal(pair.plm.hidden(tokens, 2), pair.plm.hidden(tokens, 2))
    assert torch.equal(pair.plm.logits(tokens), pair.plm.logits(tokens))
