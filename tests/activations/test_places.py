"""Several places in one pass of the model: each store is the one that an extraction of its own gives."""

from __future__ import annotations

import json

import pytest

from plmsae.activations.extract import extract
from plmsae.activations.metadata import read_metadata
from plmsae.activations.places import chosen_store, find_stores, folder_name, store_at
from plmsae.errors import DataError, UserError
from plmsae.plms.base import Place
from tests.activations.test_extract import SETTINGS, SHA256, contents

PLACES = [Place(1, "residual"), Place(0, "residual"), Place(2, "mlp")]


def run(plm, sequences, output, checkpoints, settings=SETTINGS, **more):
    return extract(plm, sequences, output, checkpoints, settings, sequences_sha256=SHA256, **more)


class Counting:
    """A model that counts the sequences that pass through it."""

    def __init__(self, plm):
        self.plm, self.num_sequences = plm, 0

    def __getattr__(self, name):
        return getattr(self.plm, name)

    def hidden_at(self, tokens, places):
        self.num_sequences += len(tokens.lengths)
        return self.plm.hidden_at(tokens, places)


@pytest.fixture(scope="module")
def several(plm, sequences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    counting = Counting(plm)
    statistics = run(counting, sequences, folder / "out", folder / "ck", also=PLACES[1:])
    return folder / "out", statistics, counting.num_sequences


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_each_store_is_that_of_its_own_extraction(plm, sequences, several, tmp_path, place):
    alone = run(plm, sequences, tmp_path / "out", tmp_path / "ck", SETTINGS.at(place))
    folder = several[0] / folder_name(place.layer, place.hook)
    assert contents(folder) == contents(tmp_path / "out")
    assert several[1][PLACES.index(place)]["train"].scale == alone[0]["train"].scale
    metadata = read_metadata(folder)
    assert (metadata.layer, metadata.hook) == (place.layer, place.hook)


def test_every_protein_passes_the_model_once(sequences, several):
    assert several[2] == (sequences["split"] != "test").sum()


def test_stores_are_listed_in_order(several):
    assert list(find_stores(several[0])) == [(place.layer, place.hook) for place in PLACES]
    assert sorted(path.name for path in several[0].iterdir()) == [
        "layer0.residual",
        "layer1.residual",
        "layer2.mlp",
        "stores.json",
    ]


@pytest.mark.parametrize(
    ("layer", "hook", "name"),
    [
        (None, None, "layer1.residual"),
        (0, None, "layer0.residual"),
        (None, "mlp", "layer2.mlp"),
        (2, "mlp", "layer2.mlp"),
    ],
)
def test_the_store_of_a_place(several, layer, hook, name):
    assert store_at(several[0], layer, hook) == several[0] / name
    assert chosen_store(several[0], layer, hook, where="train_sae") == several[0] / name


def test_a_place_that_is_not_there_names_both_sides(several, plm, sequences, tmp_path):
    with pytest.raises(UserError) as caught:
        store_at(several[0], 2, "residual")
    assert "layer 1 (residual), layer 0 (residual), layer 2 (mlp)" in str(caught.value)
    assert "layer 2 and hook residual" in str(caught.value)
    run(plm, sequences, tmp_path / "out", tmp_path / "ck")
    assert chosen_store(tmp_path / "out", 1, "residual", where="train_sae") == tmp_path / "out"
    with pytest.raises(UserError, match=r"train_sae.layer is 2; the activations are of layer 1"):
        chosen_store(tmp_path / "out", 2, None, where="train_sae")


def test_a_broken_list(tmp_path):
    (tmp_path / "stores.json").write_text(json.dumps({"stores": [{"layer": 1}]}))
    with pytest.raises(DataError, match="list of stores is not valid"):
        store_at(tmp_path, 1)


def test_only_what_is_missing_is_computed(plm, sequences, several, tmp_path):
    run(plm, sequences, tmp_path / "one", tmp_path / "ck")
    counting = Counting(plm)
    run(counting, sequences, tmp_path / "all", tmp_path / "ck", also=PLACES[1:])
    assert contents(tmp_path / "all") == contents(several[0])
    again = Counting(plm)
    run(again, sequences, tmp_path / "again", tmp_path / "ck", also=PLACES[1:])
    assert (counting.num_sequences, again.num_sequences) == ((sequences["split"] != "test").sum(), 0)
