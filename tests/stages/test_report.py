"""The report stage through the wrapper: one page with every evaluation, and nothing of the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from plmsae.errors import UserError
from plmsae.stages import report
from plmsae.stages.execute import execute
from plmsae.stages.report import ReportParams
from tests.registry.outputs import MORE, write_outputs

EVALUATIONS = [port.name for port in report.STAGE.inputs if port.kind == "result"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tests.registry.outputs.MORE", {name: MORE.get(name, {"num": 1}) for name in EVALUATIONS[2:]})
    write_outputs(tmp_path, more=EVALUATIONS[2:])
    return tmp_path


def test_one_page_has_every_evaluation_and_needs_no_other_file(root: Path) -> None:
    result = execute(report.STAGE, ReportParams(num_report_concepts=2), root=root)
    text = (root / "outputs" / "report" / "report.html").read_text(encoding="utf-8")
    assert result.metrics["num_evaluations"] == len(EVALUATIONS) == 10
    for name in EVALUATIONS:
        assert f'<a href="#{name}">' in text
        assert f'<section id="{name}">' in text
        if name not in ("fidelity", "concepts"):
            assert f"{name} | measured" in text
    assert "plmsae.esm_small.layer3.topk" in text
    targets = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert targets
    assert all(target.startswith(("#", "data:")) for target in targets), "a page in one file"
    assert "<script" not in text
    assert str(root) not in text
    assert sorted(path.name for path in (root / "outputs" / "report").iterdir()) == [
        "manifest.json",
        "metrics.json",
        "report.html",
        "summary.md",
    ]
    assert not (root / ".plmsae" / "mlflow.db").exists()
    execute(report.STAGE, ReportParams(num_report_concepts=2), root=root, output=root / "again")
    assert (root / "again" / "report.html").read_text(encoding="utf-8") == text


def test_a_table_of_concepts_of_another_evaluation_is_not_taken_for_the_concepts(root: Path) -> None:
    from plmsae.artifacts.manifest import list_files, read_manifest, write_manifest

    folder = root / "outputs" / "evaluate" / "absorption"
    manifest = read_manifest(folder)
    pd.DataFrame({"concept": ["Zinc"], "needed": [2]}).to_csv(folder / "concepts.csv", index=False)
    write_manifest(folder, manifest.model_copy(update={"files": list_files(folder)}))
    execute(report.STAGE, ReportParams(), root=root)


def test_a_missing_evaluation_is_named_with_the_stage_that_makes_it(tmp_path: Path) -> None:
    write_outputs(tmp_path)
    with pytest.raises(UserError, match=r"input 'probes'[\s\S]*plmsae run evaluate@probes"):
        execute(report.STAGE, ReportParams(), root=tmp_path)
