"""Promotion: aliases move only through the gates, and repeating it changes nothing."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from plmsae.errors import UserError
from plmsae.registry import audit
from plmsae.registry.connection import connect
from plmsae.registry.gates import Gate, Gates
from plmsae.registry.promote import promote
from plmsae.registry.register import register
from plmsae.registry.rollback import rollback
from plmsae.registry.versions import aliases_of, get_version
from tests.registry.outputs import FIDELITY, small_sae, write_outputs

NAME = "plmsae.esm_small.layer3.topk"
GATES = Gates(
    at_least={"fidelity": {"masked_loss_recovered_mean": Gate(limit=80.0, tolerance=2.0)}},
    at_most={"fidelity": {"fvu": Gate(limit=0.5, tolerance=0.01)}},
)


def add(root: Path, *, fvu: float = 0.31, seed: int = 0) -> int:
    return register(write_outputs(root, seed=seed, fidelity={**FIDELITY, "fvu": fvu}), root).version


def aliases(root: Path) -> dict[str, int]:
    with connect(root) as client:
        return aliases_of(client, NAME)


def test_the_first_version_that_passes_is_champion(root: Path) -> None:
    version = add(root)
    decision = promote(NAME, version, GATES, root)
    assert decision.promoted
    assert decision.compared_with is None
    assert aliases(root) == {"candidate": 1, "champion": 1}


def test_the_old_champion_becomes_previous(root: Path) -> None:
    promote(NAME, add(root), GATES, root)
    better = add(root, fvu=0.25, seed=1)
    decision = promote(NAME, better, GATES, root)
    assert decision.promoted
    assert decision.compared_with == 1
    assert len(decision.checks) == 4
    assert aliases(root) == {"candidate": 2, "champion": 2, "previous": 1}


@pytest.mark.parametrize("fvu", [0.6, 0.33])
def test_a_refusal_leaves_every_alias_and_says_the_numbers(root: Path, fvu: float) -> None:
    promote(NAME, add(root), GATES, root)
    worse = add(root, fvu=fvu, seed=1)
    before = aliases(root)
    decision = promote(NAME, worse, GATES, root)
    assert not decision.promoted
    assert aliases(root) == before == {"candidate": 2, "champion": 1}
    assert all("fidelity.fvu" in reason for reason in decision.reasons)
    error = decision.error()
    assert error.exit_code == 4
    assert f"fidelity.fvu = {fvu} is above" in str(error)
    with connect(root) as client:
        recorded = json.loads(get_version(client, NAME, worse).tags["promotion"])
    assert recorded == json.loads(json.dumps(decision.record()))


def test_repeating_a_promotion_changes_nothing(root: Path) -> None:
    promote(NAME, add(root), GATES, root)
    better = add(root, fvu=0.25, seed=1)
    first = promote(NAME, better, GATES, root)
    before = aliases(root)
    assert promote(NAME, better, GATES, root) == first
    assert aliases(root) == before


class Cut(BaseException):
    """Stands for the kill of the process."""


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_promotion_cut_off_at_any_step_ends_as_an_undisturbed_one(
    root: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(NAME, add(root), GATES, root)
    better = add(root, fvu=0.25, seed=1)
    whole = MlflowClient.set_registered_model_alias
    count = 0

    def cut(*args: object) -> None:
        nonlocal count
        if count == calls:
            raise Cut
        count += 1
        whole(*args)
        if count == 2:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", cut)
        with pytest.raises(Cut):
            promote(NAME, better, GATES, root)
    decision = promote(NAME, better, GATES, root)
    assert decision.promoted
    assert decision.compared_with == 1
    assert aliases(root) == {"candidate": 2, "champion": 2, "previous": 1}


@pytest.mark.parametrize(
    "change",
    [{"data": "MKVA"}, {"settings": {"seed": 1}}, {"settings": {"seed": 0, "num_proteins": 50}}, {"plmsae": "0.2.0"}],
    ids=["data", "settings", "one more setting", "version of plmsae"],
)
def test_another_evaluation_cannot_be_compared(root: Path, change: dict[str, Any]) -> None:
    promote(NAME, add(root), GATES, root)
    outputs = write_outputs(root, seed=1, fidelity={**FIDELITY, "fvu": 0.1}, **change)
    version = register(outputs, root).version
    assert version == 2
    decision = promote(NAME, version, GATES, root)
    assert not decision.promoted
    assert decision.compared_with is None
    assert decision.reasons[0].startswith("the champion (version 1) was evaluated on other data or settings")
    assert aliases(root) == {"candidate": 2, "champion": 1}
    accepted = promote(NAME, version, GATES.model_copy(update={"other_evaluation": "accept"}), root)
    assert accepted.promoted
    assert accepted.compared_with is None
    assert aliases(root)["champion"] == version


def test_another_training_is_compared_on_the_same_evaluation(root: Path) -> None:
    promote(NAME, add(root), GATES, root)
    version = register(write_outputs(root, sae=small_sae(3, dictionary_size=128, k=16)), root).version
    decision = promote(NAME, version, GATES, root)
    assert decision.compared_with == 1
    assert {check.rule for check in decision.checks} >= {"not_below_champion", "not_above_champion"}
    with connect(root) as client:
        keys = [get_version(client, NAME, number).tags["evaluation_sha256"] for number in (1, version)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 64


def test_stricter_gates_are_applied_to_the_champion_again(root: Path) -> None:
    version = add(root)
    assert promote(NAME, version, GATES, root).promoted
    strict = GATES.model_copy(update={"at_most": {"fidelity": {"fvu": Gate(limit=0.1)}}})
    assert not promote(NAME, version, strict, root).promoted
    assert aliases(root)["champion"] == version


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [(NAME, 9, "it has: 1"), ("plmsae.esm_small.layer3.topkk", 1, f"did you mean '{NAME}'?")],
)
def test_what_does_not_exist_cannot_be_promoted(root: Path, name: str, version: int, message: str) -> None:
    add(root)
    with pytest.raises(UserError) as caught:
        promote(name, version, GATES, root)
    assert message in str(caught.value)
    assert aliases(root) == {"candidate": 1}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ((), ("baselines", "amortisation"), "was registered without the evaluation amortisation, baselines, so"),
        (("baselines",), (), "was registered with the evaluation baselines as well, so"),
    ],
)
def test_a_champion_with_other_evidence_is_named_with_what_differs(
    root: Path, first: tuple[str, ...], second: tuple[str, ...], words: str
) -> None:
    """A champion from before an evaluation joined the pipeline has no numbers of it."""
    promote(NAME, register(write_outputs(root, more=first), root).version, GATES, root)
    version = register(write_outputs(root, seed=1, more=second), root).version
    decision = promote(NAME, version, GATES, root)
    assert not decision.promoted
    assert decision.reasons == (
        f"the champion (version 1) {words} the two cannot be compared (promote.other_evaluation: accept promotes on "
        "the limits alone)",
    )
    assert promote(NAME, version, GATES.model_copy(update={"other_evaluation": "accept"}), root).promoted


def log(root: Path) -> list[dict[str, Any]]:
    with connect(root) as client:
        return list(audit.records(client.get_registered_model(NAME).tags, "promotion", NAME).values())


def test_when_why_and_on_what_numbers_stays_on_record(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(NAME, add(root), GATES, root, reason="the first")
    worse = add(root, fvu=0.6, seed=1)
    promote(NAME, worse, GATES, root, reason="why not")
    promote(NAME, worse, GATES, root, reason="again")  # the same refusal on the same numbers is the same record
    monkeypatch.setenv("KFP_RUN_ID", "5b1f9c0e")
    better = add(root, fvu=0.25, seed=2)
    promote(NAME, better, GATES, root)
    promote(NAME, better, GATES, root)
    found = log(root)
    assert [
        (item["version"], item["from_version"], item["promoted"], item["reason"], item["done"]) for item in found
    ] == [
        (1, None, True, "the first", True),
        (2, None, False, "why not", True),
        (3, 1, True, "", True),
    ]
    assert [item["kfp_run_id"] for item in found] == ["", "", "5b1f9c0e"]
    assert all(datetime.fromisoformat(item["at"]).utcoffset() is not None for item in found)
    assert found[1]["numbers"][0] == ["fidelity.fvu", "at_most", 0.6, 0.5, False]  # what failed comes first
    assert len(found[2]["numbers"]) == 4
    rollback(NAME, "worse on antibodies", root)
    promote(NAME, better, GATES, root, again=True, reason="it was the data")
    assert [(item["version"], item["reason"]) for item in log(root)[3:]] == [(3, "it was the data")]


def test_a_record_with_more_numbers_than_fit_says_how_many_are_missing(root: Path) -> None:
    add(root)
    names = [f"number_{index:03d}_{'x' * 60}" for index in range(60)]
    many = Gates(at_least={"fidelity": {name: Gate(limit=0.0) for name in names}}, at_most={})
    promote(NAME, 1, many, root)
    (record,) = log(root)
    assert len(record["numbers"]) + record["numbers_left_out"] == 60
    assert 0 < record["numbers_left_out"] < 60
    promote(NAME, 1, many, root)
    assert len(log(root)) == 1


def test_a_promotion_that_was_cut_off_is_one_record(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(NAME, add(root), GATES, root)
    better = add(root, fvu=0.25, seed=1)
    whole = MlflowClient.set_registered_model_alias

    def cut(client: MlflowClient, name: str, alias: str, version: str) -> None:
        whole(client, name, alias, version)
        if alias == "champion":
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", cut)
        with pytest.raises(Cut):
            promote(NAME, better, GATES, root)
    assert [item["done"] for item in log(root)] == [True, False]
    promote(NAME, better, GATES, root)
    assert [item["done"] for item in log(root)] == [True, True]
