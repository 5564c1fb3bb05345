"""The promote stage through the wrapper: a refusal is recorded or fails, as the parameters say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plmsae.errors import GateError
from plmsae.registry.gates import Gate
from plmsae.stages import promote, register
from plmsae.stages.execute import execute
from plmsae.stages.promote import PromoteParams
from plmsae.stages.register import RegisterParams
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import write_outputs

__all__ = ["empty_registry", "root"]
IMPOSSIBLE = {"fidelity": {"fvu": Gate(limit=0.0)}}


@pytest.fixture
def registered(root: Path) -> Path:
    write_outputs(root)
    execute(register.STAGE, RegisterParams(), root=root)
    return root


def record(root: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((root / "outputs" / "promote" / "promotion.json").read_text())
    return found


def test_the_demo_gates_let_a_fair_sae_through(registered: Path) -> None:
    result = execute(promote.STAGE, PromoteParams(), root=registered)
    assert result.metrics == {"promoted": 1, "num_checks": 3}
    assert record(registered)["promoted"] is True
    first = (registered / "outputs" / "promote" / "promotion.json").read_bytes()
    execute(promote.STAGE, PromoteParams(), root=registered)
    assert (registered / "outputs" / "promote" / "promotion.json").read_bytes() == first


def test_a_refusal_is_recorded_and_the_pipeline_goes_on(registered: Path) -> None:
    result = execute(promote.STAGE, PromoteParams(at_most=IMPOSSIBLE), root=registered)
    assert result.metrics["promoted"] == 0
    assert record(registered)["promoted"] is False
    assert record(registered)["reasons"] == ["fidelity.fvu = 0.31 is above 0"]
    assert "was not promoted" in result.summary


def test_a_refusal_fails_where_it_is_asked_to(registered: Path) -> None:
    with pytest.raises(GateError, match="was not promoted"):
        execute(promote.STAGE, PromoteParams(at_most=IMPOSSIBLE, on_refusal="fail"), root=registered)
    assert not (registered / "outputs" / "promote").exists()


def test_the_gates_alone_decide_what_a_decision_depends_on() -> None:
    assert PromoteParams(on_refusal="fail").gates() == PromoteParams().gates()
