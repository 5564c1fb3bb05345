"""Gates on an evaluation that a version was not registered with: the numbers of its re-evaluation count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plmsae.errors import DataError
from plmsae.registry.basis import Basis
from plmsae.registry.connection import connect
from plmsae.registry.gates import Gate, Gates
from plmsae.registry.promote import promote
from plmsae.registry.reevaluation import Measured, open_version, write
from plmsae.registry.register import register
from tests.registry.outputs import write_outputs

NAME = "plmsae.esm_small.layer3.topk"
BASIS = Basis({"ingest.source": "a" * 64}, "esm_small@1", "b" * 64, {"ingest": "c"}, {"evaluate@clustering.window": 2})
METRIC = "clustering.num_structure_held_out_clustered"
GATES = Gates(
    at_least={"clustering": {"num_structure_held_out_clustered": Gate(limit=10.0, tolerance=5.0)}}, at_most={}
)


def add(root: Path, seed: int = 0) -> int:
    return register(write_outputs(root, seed=seed), root).version


def measure(root: Path, version: int, clustered: float | None, basis: Basis = BASIS) -> None:
    """A re-evaluation of it; None: on data without structures."""
    numbers = {"num_sequence_clustered": 60.0} | ({} if clustered is None else {METRIC.split(".")[1]: clustered})
    found = Measured(replace(basis, sae=f"{version}" * 64), {"not recorded": ["-"]}, numbers, ())
    write(open_version(f"models:/{NAME}/{version}", root), {"clustering": found}, {}, root)


def test_what_a_re_evaluation_added_is_held_against_the_gate(root: Path) -> None:
    first = add(root)
    refused = promote(NAME, first, GATES, root)
    assert not refused.promoted
    assert [check.text() for check in refused.checks] == [
        f"{METRIC} was not measured (plmsae models --metrics lists what was)"
    ]
    measure(root, first, None)  # the evaluation ran, and there were no structures: still nothing that passes
    assert not promote(NAME, first, GATES, root).promoted
    measure(root, first, 9.0)
    assert promote(NAME, first, GATES, root).reasons == (f"{METRIC} = 9 is below 10",)
    measure(root, first, 30.0)
    assert promote(NAME, first, GATES, root).promoted


def test_a_version_may_be_worse_than_the_champion_by_the_tolerance_on_the_same_data(root: Path) -> None:
    first, second = add(root), add(root, seed=1)
    measure(root, first, 30.0)
    assert promote(NAME, first, GATES, root).promoted
    assert promote(NAME, second, GATES, root).reasons == (
        f"{METRIC} was not measured (plmsae models --metrics lists what was)",
        f"it (version 2) was not re-evaluated by 'clustering': plmsae reevaluate models:/{NAME}/2, with "
        "reevaluate.evaluations naming it",
    )
    measure(root, second, 24.0)
    assert promote(NAME, second, GATES, root).reasons == (
        f"{METRIC} = 24 is below 25 (the champion's, with tolerance)",
    )
    measure(root, second, 25.0)
    decision = promote(NAME, second, GATES, root)
    assert decision.promoted
    assert [(check.rule, check.limit) for check in decision.checks] == [
        ("at_least", 10.0),
        ("not_below_champion", 25.0),
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"ingest.source": "d" * 64}}, "data: "),
        ({"parameters": {"evaluate@clustering.window": 3}}, "parameters: "),
    ],
)
def test_numbers_of_other_data_or_settings_are_not_compared(root: Path, change: dict[str, object], said: str) -> None:
    first, second = add(root), add(root, seed=1)
    measure(root, first, 30.0)
    assert promote(NAME, first, GATES, root).promoted
    measure(root, second, 12.0, replace(BASIS, **change))  # type: ignore[arg-type]
    refused = promote(NAME, second, GATES, root)
    assert [check.rule for check in refused.checks] == ["at_least"]
    (reason,) = refused.reasons
    assert f"'clustering' of the champion (version 1) was measured otherwise ({said}" in reason
    assert f"plmsae reevaluate models:/{NAME}/1" in reason
    accepted = promote(NAME, second, GATES.model_copy(update={"other_evaluation": "accept"}), root)
    assert accepted.promoted


def test_a_champion_without_these_numbers_is_named_and_other_gates_do_not_mind(root: Path) -> None:
    first, second = add(root), add(root, seed=1)
    assert promote(NAME, first, Gates(), root).promoted
    measure(root, second, 30.0)
    (reason,) = promote(NAME, second, GATES, root).reasons
    assert reason.startswith(
        f"the champion (version 1) was not re-evaluated by 'clustering': plmsae reevaluate models:/{NAME}/1"
    )
    limit_only = Gates(at_least={"clustering": {"num_structure_held_out_clustered": Gate(limit=10.0)}}, at_most={})
    assert promote(NAME, second, limit_only, root).promoted


def test_an_edited_record_ends_in_words(root: Path) -> None:
    version = add(root)
    with connect(root) as client:
        client.set_model_version_tag(NAME, str(version), "reevaluation.1", '{"evaluations": 3}')
    with pytest.raises(DataError, match="somebody edited it"):
        promote(NAME, version, GATES, root)
