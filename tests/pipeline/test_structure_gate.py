"""A gate on clustering through the real stages: a re-evaluation measures it, and it refuses and passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.conftest import Finished
from tests.workspace import call

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
METRIC = "median_sequence_d"  # the proteins of the fixture have no structures


def models(root: Path) -> dict[int, dict[str, Any]]:
    return {model["version"]: model for model in json.loads(call(root, "plmsae", "models", "--json").stdout)}


def change(root: Path, **sections: dict[str, Any]) -> None:
    data = yaml.safe_load((root / "params.yaml").read_text())
    for name, values in sections.items():
        data[name].update(values)
    (root / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False))


def measured(root: Path, version: int) -> float:
    """Re-evaluates a version, and what clustering then says of it."""
    name = models(root)[version]["name"]
    call(root, "plmsae", "reevaluate", f"models:/{name}/{version}", timeout=1500)
    value: float = models(root)[version]["metrics"][f"reevaluation.clustering.{METRIC}"]
    return value


def test_the_lines_of_the_guide_gate_on_clustering(finished: Finished, tmp_path: Path) -> None:
    root = finished.copy_to(tmp_path / "work")
    name = models(root)[1]["name"]
    change(root, reevaluate={"evaluations": ["clustering"], "more_is_better": {}, "less_is_better": {}})
    first = measured(root, 1)

    # Another SAE. The pipeline refuses what it has not measured.
    def gate(limit: float, tolerance: float) -> dict[str, Any]:
        return {"at_least": {"clustering": {METRIC: {"limit": limit, "tolerance": tolerance}}}, "at_most": {}}

    change(root, train_sae={"k": 32}, promote=gate(-10.0, 10.0))
    call(root, "dvc", "repro", timeout=1500)
    record = json.loads((root / "outputs" / "promote" / "promotion.json").read_text())
    assert not record["promoted"]
    assert any(f"clustering.{METRIC} was not measured" in reason for reason in record["reasons"])
    assert models(root)[1]["aliases"] == ["champion"]

    second = measured(root, 2)
    assert first != second
    worse_by = first - second
    change(root, promote=gate(-10.0, worse_by / 2) if worse_by > 0 else gate(second + 1.0, 0.0))
    refused = call(root, "plmsae", "promote", name, "2", check=False)
    assert refused.returncode == 4
    assert f"clustering.{METRIC} = {second:.4g} is below" in refused.stderr
    change(root, promote=gate(second, max(worse_by, 0.0) + 1e-9))
    call(root, "plmsae", "promote", name, "2", "--reason", "it clusters")
    assert "champion" in models(root)[2]["aliases"]
