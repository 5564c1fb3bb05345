"""Gates by hand: limits, the champion's numbers with tolerance, and what was not measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from plmsae.errors import UserError
from plmsae.params import validate
from plmsae.registry.gates import Gate, Gates, apply_gates

ROOT = Path(__file__).parents[2]
METRICS = {"fidelity.recovered": 90.0, "fidelity.fvu": 0.30}


def gates(**changes: object) -> Gates:
    return Gates(
        at_least={"fidelity": {"recovered": Gate(limit=80.0, tolerance=2.0)}},
        at_most={"fidelity": {"fvu": Gate(limit=0.5, tolerance=0.05)}},
    ).model_copy(update=changes)


def outcome(metrics: dict[str, float], champion: dict[str, float] | None = None) -> dict[tuple[str, str], bool]:
    return {(check.metric, check.rule): check.passed for check in apply_gates(gates(), metrics, champion)}


def test_without_a_champion_only_the_limits_count() -> None:
    assert outcome(METRICS) == {("fidelity.recovered", "at_least"): True, ("fidelity.fvu", "at_most"): True}


@pytest.mark.parametrize(
    ("recovered", "fvu", "expected"),
    [(80.0, 0.5, (True, True)), (79.99, 0.5, (False, True)), (80.0, 0.501, (True, False)), (0.0, 9.0, (False, False))],
)
def test_limits_are_inclusive_and_have_a_side(recovered: float, fvu: float, expected: tuple[bool, bool]) -> None:
    found = outcome({"fidelity.recovered": recovered, "fidelity.fvu": fvu})
    assert tuple(found.values()) == expected


@pytest.mark.parametrize(
    ("champion", "expected"),
    [
        ({"fidelity.recovered": 92.0, "fidelity.fvu": 0.25}, (True, True)),  # exactly the tolerance worse
        ({"fidelity.recovered": 92.1, "fidelity.fvu": 0.25}, (False, True)),
        ({"fidelity.recovered": 92.0, "fidelity.fvu": 0.24}, (True, False)),
        ({"fidelity.recovered": 10.0, "fidelity.fvu": 0.9}, (True, True)),
    ],
)
def test_a_version_may_be_worse_than_the_champion_by_the_tolerance(
    champion: dict[str, float], expected: tuple[bool, bool]
) -> None:
    found = outcome(METRICS, champion)
    assert found[("fidelity.recovered", "not_below_champion")] is expected[0]
    assert found[("fidelity.fvu", "not_above_champion")] is expected[1]


def test_a_causal_model_is_asked_the_same_of_the_next_residue() -> None:
    asked = Gates(at_least={"fidelity": {"masked_recovered": Gate(limit=80.0, tolerance=2.0)}}, at_most={})
    causal = {"fidelity.causal_recovered": 85.0}
    limit, champion = apply_gates(asked, causal, {"fidelity.causal_recovered": 90.0, "fidelity.masked_recovered": 1.0})
    assert (limit.metric, limit.passed) == ("fidelity.causal_recovered", True)
    assert (champion.metric, champion.limit, champion.passed) == ("fidelity.causal_recovered", 88.0, False)
    both = {**causal, "fidelity.masked_recovered": 70.0}
    assert [check.value for check in apply_gates(asked, both, None)] == [70.0]
    (neither,) = apply_gates(asked, METRICS, None)
    assert neither.metric == "fidelity.masked_recovered"
    assert not neither.passed


def test_what_was_not_measured_never_passes_and_is_named() -> None:
    misspelt = Gates(at_least={"fidelity": {"recoverd": Gate(limit=0.0)}}, at_most={})
    (check,) = apply_gates(misspelt, METRICS, None)
    assert not check.passed
    assert check.text() == "fidelity.recoverd was not measured (did you mean 'fidelity.recovered'?)"


def test_a_gate_with_a_tolerance_alone_asks_nothing_of_the_first_champion() -> None:
    alone = Gates(at_least={"concepts": {"f1": Gate(tolerance=0.02)}}, at_most={})
    assert apply_gates(alone, METRICS, None) == ()
    assert apply_gates(alone, METRICS, METRICS) == ()
    (check,) = apply_gates(alone, METRICS, {"concepts.f1": 0.4})
    assert not check.passed


def test_messages_show_both_numbers() -> None:
    texts = [
        check.text()
        for check in apply_gates(gates(), {"fidelity.recovered": 70.0, "fidelity.fvu": 0.3}, {"fidelity.fvu": 0.2})
    ]
    assert texts == [
        "fidelity.recovered = 70 is below 80",
        "fidelity.fvu = 0.3; asked: at most 0.5",
        "fidelity.fvu = 0.3 is above 0.25 (the champion's, with tolerance)",
    ]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"at_least": {"fidelity": {"fvu": {}}}}, "a gate needs a limit, a tolerance or both"),
        ({"at_least": {"fidelity": {"fvu": {"limit": 1, "tolerance": -1}}}}, "greater than or equal to 0"),
        ({"at_least": {"fidelity": {"fvu": {"limit": "high"}}}}, "valid number"),
        ({"atleast": {}}, "unknown parameter 'promote.atleast'"),
        ({"other_evaluation": "ignore"}, "'refuse' or 'accept'"),
    ],
)
def test_wrong_gates_are_refused_with_the_field(section: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Gates, section, section="promote")
    assert message in str(caught.value)


def test_the_gate_on_structure_of_the_guide_holds_what_clustering_measures() -> None:
    """docs/how-to/registry.md names a metric that `evaluate@clustering` writes where there are structures."""
    text = (ROOT / "docs" / "how-to" / "registry.md").read_text(encoding="utf-8")
    block = re.search(r"\n\n((?:    .*\n)+)", text[text.index("A gate on structure") :])
    assert block is not None
    sections = yaml.safe_load(block[1])
    assert "clustering" in sections["reevaluate"]["evaluations"]
    found = validate(Gates, sections["promote"], section="promote").model_copy(update={"at_most": {}})
    metric = "clustering.num_structure_held_out_clustered"
    champion = {metric: 41.0}

    def passed(value: float | None, against: dict[str, float] | None) -> list[bool]:
        measured = {} if value is None else {metric: value}
        return [check.passed for check in apply_gates(found, measured, against)]

    assert passed(36.0, champion) == [True, True]
    assert passed(35.0, champion) == [True, False]
    assert passed(19.0, None) == [False]
    assert passed(None, None) == [False]
    report = (ROOT / "src" / "plmsae" / "evaluation" / "clustering_report.py").read_text(encoding="utf-8")
    assert 'metrics[f"num_{name}_{prefix}clustered"]' in report
    assert 'for prefix in ("", "held_out_")' in report
