"""The contract of a protein language model, over every family, against the class of transformers it stands for."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from plmsae.errors import DataError, UserError
from plmsae.plms import load_plm
from plmsae.plms.base import ATTENTION, COMPONENTS, EMBEDDING, FINAL_NORM, HOOKS, MLP, RESIDUAL, Edit, Place
from plmsae.plms.families import FAMILIES as REGISTERED
from tests.plms.tiny import D_MODEL, FAMILIES, NUM_LAYERS, Case

LENGTHS = (7, 60, 1, 60, 60, 33, 118, 2)
# Rounding of fp32 sums in another order, relative to the largest value of the tensor.
TOLERANCE = 2e-5
LAYERS = {
    EMBEDDING: range(1),
    RESIDUAL: range(NUM_LAYERS + 1),
    ATTENTION: range(1, NUM_LAYERS + 1),
    MLP: range(1, NUM_LAYERS + 1),
    FINAL_NORM: range(NUM_LAYERS, NUM_LAYERS + 1),
}
PLACES = [Place(layer, hook) for hook, layers in LAYERS.items() for layer in layers]


@pytest.fixture(scope="session", params=FAMILIES)
def case(request, tmp_path_factory) -> Case:
    make, letters = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    library = make(folder)
    return Case(load_plm(str(folder)), library, folder, letters)


@pytest.fixture(scope="session")
def sequences(case) -> list[str]:
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list(case.letters), length)) for length in LENGTHS]


@pytest.fixture(scope="session")
def tokens(case, sequences):
    return case.plm.tokenize(sequences)


@pytest.fixture(scope="session")
def expected(case, tokens):
    return case.library.run(tokens)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_every_registered_family_has_a_case():
    assert {family.module for family in REGISTERED} == set(FAMILIES) - {"codegen"}
    assert set(LAYERS) == set(HOOKS)


def test_every_place_and_the_logits_equal_those_of_the_library(case, tokens, expected):
    states, logits = expected
    for place, found in zip(PLACES, case.plm.hidden_at(tokens, PLACES), strict=True):
        assert_close(found, states[place.hook, place.layer])
    if case.plm.objective == "none":
        assert logits is None
    else:
        assert_close(case.plm.logits(tokens), logits)


def test_several_places_in_one_pass_are_each_alone(case, tokens):
    for place, found in zip(PLACES, case.plm.hidden_at(tokens, PLACES), strict=True):
        assert torch.equal(found, case.plm.hidden(tokens, place.layer, place.hook)), place
    assert case.plm.hidden_at(tokens, []) == []


def test_what_the_components_add_is_the_difference_between_layers(case, tokens):
    for layer in range(1, NUM_LAYERS):
        before, after, attention, mlp = case.plm.hidden_at(
            tokens, [Place(layer - 1), Place(layer), Place(layer, ATTENTION), Place(layer, MLP)]
        )
        assert_close(before + attention + mlp, after)


def test_a_pass_stops_after_the_last_wanted_layer(case):
    tokens = case.plm.tokenize(["ACDEF"] * 3)  # of equal length, so that a layer is one call of attention
    for places, layers in ([Place(0)], 0), ([Place(1), Place(2)], 2), ([Place(1, MLP)], 1), ([Place(3)], 3):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            case.plm.hidden_at(tokens, places)
        names = [event.name for event in profiler.events()]
        assert names.count("aten::scaled_dot_product_attention") == layers


def test_one_row_per_residue_and_none_for_specials(case, sequences, tokens):
    plm = case.plm
    assert tokens.num_residues == sum(LENGTHS)
    letters = {index: token for token, index in plm.vocabulary.items()}
    assert "".join(letters[i] for i in plm.residue_ids(tokens).tolist()) == "".join(sequences)
    specials = {letters[i] for i in tokens.ids[~tokens.residues].tolist()}
    assert specials <= {"<cls>", "<eos>", "</s>", "1"}
    assert len(tokens.ids) - tokens.num_residues in (len(LENGTHS), 2 * len(LENGTHS))
    for found in plm.hidden_at(tokens, PLACES):
        assert found.shape == (sum(LENGTHS), plm.d_model)
    assert (plm.num_layers, plm.d_model) == (NUM_LAYERS, case.library.model.config.hidden_size)


def test_a_sequence_does_not_depend_on_its_batch(case, sequences, tokens):
    together = [found.split(LENGTHS) for found in case.plm.hidden_at(tokens, PLACES)]
    for index, sequence in enumerate(sequences):
        alone = case.plm.hidden_at(case.plm.tokenize([sequence]), PLACES)
        for place, found in zip(together, alone, strict=True):
            assert (found - place[index]).abs().max() <= TOLERANCE * torch.cat(place).abs().max()


def test_permuting_the_batch_permutes_the_rows(case, sequences, tokens):
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    permuted = case.plm.hidden(case.plm.tokenize([sequences[i] for i in order]), 2)
    expected = case.plm.hidden(tokens, 2).split(LENGTHS)
    assert_close(permuted, torch.cat([expected[i] for i in order]))


def test_identity_edit_is_exact_at_every_place(case, tokens):
    last = Place(NUM_LAYERS)
    plain = case.plm.hidden(tokens, NUM_LAYERS)
    for place in PLACES:
        seen = []

        def identity(rows, seen=seen):
            seen.append(rows.clone())
            return rows

        edit = Edit(place.layer, place.hook, identity)
        assert torch.equal(case.plm.hidden_at(tokens, [last], edit)[0], plain), place
        assert torch.equal(seen[0], case.plm.hidden(tokens, place.layer, place.hook)), place
        if case.plm.objective != "none":
            assert torch.equal(case.plm.logits(tokens, edit), case.plm.logits(tokens)), place


@pytest.mark.parametrize("hook", COMPONENTS)
def test_editing_what_a_component_adds_equals_the_library_with_a_hook(case, tokens, hook):
    shift = torch.linspace(-1, 1, case.plm.d_model)
    states, logits = case.library.run(tokens, (hook, 2, lambda added: 0.5 * added + shift))
    edit = Edit(2, hook, lambda rows: 0.5 * rows + shift)
    places = [Place(2), Place(3, ATTENTION), Place(3)]
    for place, found in zip(places, case.plm.hidden_at(tokens, places, edit), strict=True):
        assert_close(found, states[place.hook, place.layer])
    (edited,) = case.plm.hidden_at(tokens, [Place(2, hook)], edit)
    assert_close(edited, 0.5 * case.plm.hidden(tokens, 2, hook) + shift)
    if logits is not None:
        assert_close(case.plm.logits(tokens, edit), logits)


def test_editing_the_residual_stream_is_adding_to_what_comes_before_it(case, tokens):
    shift = torch.linspace(-1, 1, case.plm.d_model)
    states, _ = case.library.run(tokens, (MLP, 2, lambda added: added + shift))
    (found,) = case.plm.hidden_at(tokens, [Place(3)], Edit(2, RESIDUAL, lambda rows: rows + shift))
    assert_close(found, states[RESIDUAL, 3])


def test_logits_of_several_edits_are_those_of_each_alone(case, tokens):
    edits = [
        None,
        Edit(2, ATTENTION, lambda rows: rows.mul_(2)),
        Edit(3, RESIDUAL, torch.zeros_like),
        Edit(1, MLP, torch.zeros_like),
        Edit(0, EMBEDDING, lambda rows: rows + 1),
    ]
    if case.plm.objective == "none":
        with pytest.raises(UserError, match=r"has no head(.|\n)*fidelity, steering"):
            list(case.plm.logits_each(tokens, edits))
        return
    for chosen in (edits, edits[:2], [edits[3], None]):
        for found, edit in zip(case.plm.logits_each(tokens, chosen), chosen, strict=True):
            assert torch.equal(found, case.plm.logits(tokens, edit))


def test_edits_that_break_the_contract(case, tokens):
    for hook in (ATTENTION, RESIDUAL):
        with pytest.raises(UserError, match=r"returned shape \[2, \d+\]"):
            case.plm.hidden_at(tokens, [Place(3)], Edit(1, hook, lambda rows: rows[:2]))
        with pytest.raises(DataError, match="not finite"):
            case.plm.hidden_at(tokens, [Place(3)], Edit(1, hook, lambda rows: rows / 0))


def test_places_that_do_not_exist(case, tokens):
    for layer, hook, message in (
        (4, RESIDUAL, r"no layer 4(.|\n)*0 \(the embedding\) to 3"),
        (0, ATTENTION, r"no layer 0 at hook 'attention'(.|\n)*use 1 to 3"),
        (1, EMBEDDING, r"no layer 1 at hook 'embedding'(.|\n)*use 0"),
        (2, FINAL_NORM, r"no layer 2 at hook 'final_norm'(.|\n)*use 3"),
        (1, "mpl", r"no hook 'mpl'(.|\n)*did you mean 'mlp'"),
    ):
        with pytest.raises(UserError, match=message):
            case.plm.hidden_at(tokens, [Place(1), Place(layer, hook)])
        with pytest.raises(UserError, match=message):
            case.plm.hidden_at(tokens, [Place(3)], Edit(layer, hook, lambda rows: rows))


def test_lengths_up_to_the_longest(case):
    longest = case.plm.max_residues
    assert longest == (4096 if case.plm.vocabulary.get("</s>") else 200)
    if longest == 200:
        tokens = case.plm.tokenize(["A" * longest])
        assert_close(case.plm.hidden(tokens, 2), case.library.run(tokens)[0][RESIDUAL, 2])
    with pytest.raises(DataError, match=rf"{longest + 1} residues is longer") as caught:
        case.plm.tokenize(["ACD", "A" * (longest + 1)], ["P1", "P2"])
    assert caught.value.where == "P2"
    with pytest.raises(DataError, match="without residues"):
        case.plm.tokenize([""])


def test_masking_is_for_masked_models(case, tokens):
    if case.plm.objective == "masked":
        masked = case.plm.with_masked(tokens, torch.tensor([0, 9]))
        assert (masked.ids != tokens.ids).nonzero()[:, 0].tolist() == [1, 1 + 7 + 2 + 2]
        logits = case.library.run(masked)[1]
        assert_close(case.plm.logits(masked), logits)
        return
    assert case.plm.mask_id is None
    with pytest.raises(UserError, match="no mask token"):
        case.plm.with_masked(tokens, torch.tensor([0]))


def test_a_causal_model_does_not_look_ahead(case):
    one, other = (case.plm.tokenize([sequence]) for sequence in ("ACDEFGH", "ACDEWWW"))
    same = torch.isclose(case.plm.hidden(one, 3)[:4], case.plm.hidden(other, 3)[:4], rtol=1e-4, atol=1e-5)
    assert bool(same.all()) == (case.plm.objective == "causal")


def test_bfloat16_is_close_to_float32(case, tokens):
    plm = load_plm(str(case.folder), precision="bfloat16")
    for place in (Place(0), Place(2), Place(2, MLP), Place(3)):
        full, half = case.plm.hidden(tokens, place.layer, place.hook), plm.hidden(tokens, place.layer, place.hook)
        assert half.dtype == torch.float32
        error = ((half - full).square().sum() / full.square().sum()).sqrt()
        assert error < 0.05
        assert (error == 0) == (place.layer == 0)


def test_the_same_checkpoint_gives_the_same_bytes(case, tokens):
    again = load_plm(str(case.folder))
    assert again.revision == case.plm.revision
    assert all(map(torch.equal, again.hidden_at(tokens, PLACES), case.plm.hidden_at(tokens, PLACES)))


def test_a_configuration_of_another_architecture_is_refused(case, tmp_path):
    wrong = {
        "esm": ("position_embedding_type", "absolute"),
        "esmc": ("attention_bias", True),
        "t5": ("feed_forward_proj", "gated-gelu"),
        "codegen": ("activation_function", "relu"),
        "progen": ("vocab_size_lm_head", 40),
    }
    folder = shutil.copytree(case.folder, tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text())
    key, value = wrong[config["model_type"]]
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=rf"is not of (.*)'s architecture: (.*){key} = "):
        load_plm(str(folder))


def test_the_width_says_which_model_it_is(case):
    assert case.plm.d_model in (D_MODEL, 2 * D_MODEL)
