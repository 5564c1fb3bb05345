"""What an evaluation rests on: every cause of staleness is told from every other."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from plmsae.errors import DataError
from plmsae.registry.basis import CAUSES, NOT_RECORDED, Basis, changes, parameters, recorded

HASHES = ["a" * 64, "b" * 64]
BASIS = Basis(
    data={"ingest.source": HASHES[0]},
    plm="esm_small@sha256:11",
    sae=HASHES[0],
    code={"ingest": "1", "extract_activations": "2", "evaluate@fidelity": "3"},
    parameters={"ingest.seed": 0, "evaluate@fidelity.max_proteins": 200},
)
CHANGED: dict[str, dict[str, Any]] = {
    "data": {"data": {"ingest.source": HASHES[1]}},
    "plm": {"plm": "esm_small@sha256:22"},
    "sae": {"sae": HASHES[1]},
    "code": {"code": {**BASIS.code, "extract_activations": "9"}},
    "parameters": {"parameters": {**BASIS.parameters, "evaluate@fidelity.max_proteins": None}},
}


def test_the_same_basis_is_no_cause() -> None:
    assert changes(BASIS, BASIS) == {}
    assert changes(Basis.parse(json.loads(json.dumps(BASIS.record())), "a tag"), BASIS) == {}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_told_from_the_others(cause: str) -> None:
    found = changes(BASIS, replace(BASIS, **CHANGED[cause]))
    assert list(found) == [cause]
    (line,) = found[cause]
    assert "->" in line or cause == "sae"
    others: dict[str, Any] = {}
    for name in CAUSES:
        if name != cause:
            others |= CHANGED[name]
    assert set(changes(BASIS, replace(BASIS, **others))) == set(CAUSES) - {cause}


def test_what_was_not_recorded_is_a_cause_of_its_own() -> None:
    assert list(changes(None, BASIS)) == [NOT_RECORDED]


def test_words_name_the_parameter_and_cut_checksums() -> None:
    assert changes(BASIS, replace(BASIS, **CHANGED["parameters"])) == {
        "parameters": ["evaluate@fidelity.max_proteins: 200 -> none"]
    }
    assert changes(BASIS, replace(BASIS, **CHANGED["data"])) == {"data": [f"ingest.source: {'a' * 12} -> {'b' * 12}"]}


def test_a_parameter_that_came_with_new_code_is_the_codes() -> None:
    more = {**BASIS.parameters, "ingest.added": 1}
    new_code = {**BASIS.code, "ingest": "9"}
    assert list(changes(BASIS, replace(BASIS, parameters=more, code=new_code))) == ["code"]
    assert list(changes(BASIS, replace(BASIS, parameters=more))) == ["parameters"]
    assert list(changes(BASIS, replace(BASIS, parameters={**more, "ingest.seed": 1}, code=new_code))) == [
        "code",
        "parameters",
    ]


def test_labels_places_and_speed_are_no_parameters() -> None:
    sections = {
        "ingest": {"source": "a.gz", "source_sha256": None, "release": "2025_04", "structures": None, "seed": 0},
        "extract_activations": {"plm": "x", "store": "s3://b/c", "threads": 8, "dtype": "bfloat16"},
        "evaluate@concepts": {
            "threads": 2,
            "interplm_table": None,
            "interplm_table_sha256": None,
            "seed": 1,
            "d": {"e": 2},
        },
    }
    files = {"ingest": ("source", "structures"), "evaluate@concepts": ("interplm_table",)}
    assert parameters(sections, files) == {
        "ingest.seed": 0,
        "extract_activations.dtype": "bfloat16",
        "evaluate@concepts.seed": 1,
        "evaluate@concepts.d.e": 2,
    }


def test_the_record_of_a_registration_is_a_basis() -> None:
    def stage(**more: Any) -> dict[str, Any]:
        return {"params": {"seed": 0, "threads": 2}, "source_files": {}, "inputs": {}, "code_sha256": "c", **more}

    stages = {
        "sequences": stage(source_files={"source": HASHES[0]}),
        "activations": stage(),
        "fidelity": stage(inputs={"sae": HASHES[1]}),
    }
    found = recorded(stages, "fidelity", "esm_small@r", {"ingest": ("source",)})
    assert found == Basis(
        data={"ingest.source": HASHES[0]},
        plm="esm_small@r",
        sae=HASHES[1],
        code={"ingest": "c", "extract_activations": "c", "evaluate@fidelity": "c"},
        parameters={"ingest.seed": 0, "evaluate@fidelity.seed": 0},
    )
    assert recorded(stages, "concepts", "esm_small@r", {}) is None
    assert recorded({**stages, "fidelity": stage(params=None)}, "fidelity", "esm_small@r", {}) is None


@pytest.mark.parametrize("data", [None, [], {"data": {}}, {**BASIS.record(), "code": "3"}])
def test_an_edited_record_is_a_data_error(data: Any) -> None:
    with pytest.raises(DataError, match="damaged"):
        Basis.parse(data, "models:/x/1")
