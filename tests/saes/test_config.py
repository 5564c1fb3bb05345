import json

import pytest

from plmsae.errors import DataError, UserError
from plmsae.saes import SaeConfig, sparsity
from tests.saes.conftest import config_of


def test_json_round_trip_is_exact() -> None:
    config = config_of(
        "topk",
        normaliser={"kind": "rms", "scale": 1 / 3, "folded": True},
        options={"aux_k": 7},
        training={"seed": 5, "learning_rate": 4.62e-4, "sequences_sha256": "ab"},
    )
    again = SaeConfig.from_json(config.to_json(), "config.json")
    assert again == config
    assert again.normaliser["scale"] == 1 / 3
    assert again.to_json() == config.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 41}, "k = 41 is larger than the dictionary of 40"),
        ({"k": 0}, "'k'"),
        ({"k": 8.0}, "'k'"),
        ({"k": True}, "'k'"),
        ({"d_model": "12"}, "'d_model'"),
        ({"layer": -1}, "'layer'"),
        ({"plm": ""}, "'plm'"),
        ({"options": []}, "'options'"),
        ({"normaliser": {"kind": "rms", "scale": 0.0, "folded": False}}, "normaliser"),
        ({"normaliser": {"kind": "rms", "scale": float("nan"), "folded": False}}, "normaliser"),
        ({"normaliser": {"kind": "rms", "scale": 1.0, "folded": 1}}, "normaliser"),
        ({"normaliser": {"kind": "layer_norm", "scale": 1.0, "folded": False}}, "normaliser"),
        ({"normaliser": {"kind": "rms", "scale": 1.0}}, "normaliser"),
        ({"normaliser": {"kind": "rms", "scal": 1.0, "folded": True}}, "unknown key 'normaliser.scal'"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        config_of("topk", **changes)
    assert error.value.fix


def edited(**changes: object) -> str:
    data = json.loads(config_of("topk").to_json())
    data.update(changes)
    return json.dumps({key: value for key, value in data.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("{", "not valid JSON", "restore"),
        ('{"k": NaN}', "NaN is not a number", "restore"),
        ("[1]", "not a mapping", "restore"),
        (edited(dictionary_sise=3), "unknown key 'dictionary_sise'", "did you mean 'dictionary_size'"),
        (edited(plm_revision=...), "key 'plm_revision' is missing", "restore"),
        (edited(schema_version=2), "SAE format 2 is newer", "update plmsae"),
        (edited(k=99), "k = 99 is larger", "lower k"),
        (edited(schema_version="1"), "'schema_version'", "whole number"),
        (edited(schema_version=0), "'schema_version'", "whole number"),
        (edited(schema_version=...), "key 'schema_version' is missing", "restore"),
        (edited(d_model=10**30), "'d_model'", "at most 2147483647"),
        (edited(d_model=2**20, dictionary_size=2**30), "larger than any memory", "correct the sizes"),
        ("[" * 100_000, "not valid JSON", "restore"),
    ],
)
def test_a_stored_configuration_is_read_strictly(text: str, message: str, fix: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        SaeConfig.from_json(text, "some/config.json")
    assert "some/config.json" in (error.value.where or "")
    assert fix in (error.value.fix or "")


@pytest.mark.parametrize(
    ("architecture", "wanted"),
    [("topk", "k = 5"), ("batch_topk", "k = 5 on average"), ("matryoshka", "k = 5 on average"),
     ("relu", "any number active"), ("neurons", "k = 12")],
)  # fmt: skip
def test_how_many_latents_are_active_in_words(architecture: str, wanted: str) -> None:
    assert sparsity(config_of(architecture)) == wanted
