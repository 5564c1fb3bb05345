"""All evaluations for people with DVC: a graph beside the main one that ends in one page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from plmsae.stages.catalog import stage, stages_of
from tests.pipeline.conftest import Finished
from tests.workspace import ROOT, call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FILE = "pipelines/evaluate/dvc.yaml"


@pytest.fixture(scope="module")
def root(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after `dvc repro`, with the evaluations' graph beside the main one."""
    root = finished.copy_to(tmp_path_factory.mktemp("evaluations") / "work")
    (root / FILE).parent.mkdir(parents=True)
    shutil.copy(ROOT / FILE, root / FILE)
    return root


def test_repro_runs_every_evaluation_and_ends_in_one_page(root: Path) -> None:
    text = call(root, "dvc", "repro", FILE, timeout=800).stdout
    ran = re.findall(r"Running stage '[^:']+:([^']+)'", text)
    assert {name.replace("evaluate_", "evaluate@") for name in ran} == set(stages_of("evaluate")), text
    assert ran[-1] == "report"
    page = (root / "outputs" / "report" / "report.html").read_text(encoding="utf-8")
    for port in stage("report").inputs:
        if port.kind == "result":
            folder = root / "outputs" / Path(*port.source.split("@"))
            assert f'<section id="{port.name}">' in page
            assert (folder / "table.csv").is_file() or port.name in ("fidelity", "concepts", "steering")
            assert list((folder / "figures").glob("*.png"))
            metrics = json.loads((folder / "metrics.json").read_text())
            assert any(isinstance(value, int) and value > 0 for name, value in metrics.items() if "num" in name)
    assert "Running stage" not in call(root, "dvc", "repro", FILE).stdout
    assert "up to date" in call(root, "dvc", "repro").stdout


def test_the_graph_has_the_ports_of_the_catalogue() -> None:
    document = yaml.safe_load((ROOT / FILE).read_text(encoding="utf-8"))["stages"]
    for each in stages_of("evaluate").values():
        name = each.id if each.id in document else each.id.replace("@", "_")
        described = document.get(name) or document[each.name]
        assert {f"outputs/{port.source.replace('@', '/')}" for port in each.inputs} <= set(described["deps"]), name
        if "matrix" in described:
            assert each.entry in described["matrix"]["suite"]
