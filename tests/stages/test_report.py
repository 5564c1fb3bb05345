"""The report stage through the wrapper: one page with every evaluation, and nothing of the registry."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from plmsae import cli
from plmsae.artifacts.manifest import list_files, read_manifest, write_manifest
from plmsae.errors import UserError
from plmsae.registry.connection import connect, experiment_id
from plmsae.stages import report
from plmsae.stages.execute import execute
from plmsae.stages.report import ReportParams
from tests.registry.fixtures import empty_registry
from tests.registry.outputs import MORE, write_outputs
from tests.workspace import ROOT

__all__ = ["empty_registry"]

EVALUATIONS = [port.name for port in report.STAGE.inputs if port.source.startswith("evaluate@")]
RESULTS = [port.name for port in report.STAGE.inputs if port.kind == "result"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tests.registry.outputs.MORE", {name: MORE.get(name, {"num": 1}) for name in EVALUATIONS[2:]})
    write_outputs(tmp_path, more=EVALUATIONS[2:])
    return tmp_path


def test_one_page_has_every_evaluation_and_needs_no_other_file(root: Path) -> None:
    result = execute(report.STAGE, ReportParams(num_report_concepts=2), root=root, without=["steering"])
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
    again = root / "again"
    execute(report.STAGE, ReportParams(num_report_concepts=2), root=root, without=["steering"], output=again)
    assert (again / "report.html").read_text(encoding="utf-8") == text


def test_asked_to_the_page_is_kept_in_mlflow(root: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(empty_registry, root / ".plmsae")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(root)
    assert cli.main(["run", "report", "--track", "--without", "steering", "--params", str(ROOT / "params.yaml")]) == 0
    with connect(root) as client:
        (run,) = client.search_runs([experiment_id(client, root)], "tags.stage = 'report'")
        kept = Path(client.download_artifacts(run.info.run_id, "report.html", str(root)))
    assert kept.read_bytes() == (root / "outputs" / "report" / "report.html").read_bytes()


def test_a_table_of_concepts_of_another_evaluation_is_not_taken_for_the_concepts(root: Path) -> None:
    folder = root / "outputs" / "evaluate" / "absorption"
    manifest = read_manifest(folder)
    pd.DataFrame({"concept": ["Zinc"], "needed": [2]}).to_csv(folder / "concepts.csv", index=False)
    write_manifest(folder, manifest.model_copy(update={"files": list_files(folder)}))
    execute(report.STAGE, ReportParams(), root=root, without=["steering"])


def test_what_is_left_out_is_not_on_the_page_and_something_must_be(root: Path) -> None:
    result = execute(report.STAGE, ReportParams(), root=root, without=["controls", "layers", "steering"])
    text = (root / "outputs" / "report" / "report.html").read_text(encoding="utf-8")
    assert result.metrics["num_evaluations"] == 8
    assert '<section id="absorption">' in text
    assert '<section id="controls">' not in text
    with pytest.raises(UserError, match="no evaluation to report"):
        execute(report.STAGE, ReportParams(), root=root, without=[*RESULTS, "activations"])


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (["sequences"], "'report' cannot do without its input 'sequences'"),
        (["steer"], "stage 'report' has no input 'steer'"),
    ],
)
def test_only_what_is_optional_can_be_left_out(root: Path, without: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        execute(report.STAGE, ReportParams(), root=root, without=without)


def test_of_steering_alone_the_page_shows_the_residues_that_changed_most(tmp_path: Path) -> None:
    write_outputs(tmp_path)
    folder = tmp_path / "outputs" / "steer"
    shutil.copytree(tmp_path / "outputs" / "evaluate" / "fidelity", folder)
    (folder / "top_residues.csv").write_text("accession,position,kl\nP12345,7,0.25\n")
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"stage": "steer", "files": list_files(folder)}))
    others = [name for name in RESULTS if name != "steering"]
    execute(report.STAGE, ReportParams(), root=tmp_path, without=[*others, "activations"])
    text = (tmp_path / "outputs" / "report" / "report.html").read_text(encoding="utf-8")
    assert '<section id="steering">' in text
    assert "P12345" in text
    assert '<section id="fidelity">' not in text


def test_a_missing_evaluation_is_named_with_the_stage_that_makes_it(tmp_path: Path) -> None:
    write_outputs(tmp_path)
    with pytest.raises(UserError, match=r"input 'probes'[\s\S]*plmsae run evaluate@probes"):
        execute(report.STAGE, ReportParams(), root=tmp_path)
