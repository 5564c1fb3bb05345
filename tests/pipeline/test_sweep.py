"""The sweep for people with DVC: beside the main graph, the same graph as on Kubeflow, and safe against `kill -9`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline.conftest import Finished
from tests.pipeline.test_graph import compiled, dvc_edges, flattened
from tests.pipeline.test_kill import kill_while_working
from tests.workspace import ROOT, call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FILE = "pipelines/sweep/dvc.yaml"


@pytest.fixture(scope="module")
def root(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after `dvc repro`, with the sweep's graph beside the main one."""
    root = finished.copy_to(tmp_path_factory.mktemp("sweep") / "work")
    (root / FILE).parent.mkdir(parents=True)
    shutil.copy(ROOT / FILE, root / FILE)
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_graph_is_that_of_the_kubeflow_pipeline(root: Path) -> None:
    artifacts, _ = flattened(compiled("sweep"))
    assert {(producer, consumer) for producer, consumer, _ in artifacts} == dvc_edges(root, f"{FILE}:register")


def test_a_second_repro_does_nothing_and_does_not_run_the_sweep(root: Path) -> None:
    text = call(root, "dvc", "repro").stdout
    assert "Running stage" not in text
    assert "up to date" in text
    assert not (root / "outputs" / "sweep").exists()


def test_killed_and_run_again_by_dvc_it_ends_in_the_bytes_of_an_undisturbed_run(root: Path, swept: Path) -> None:
    assert kill_while_working(root, "sweep", 0.5, 4.0)
    text = call(root, "dvc", "repro", FILE, timeout=600).stdout
    assert "Running stage 'pipelines/sweep/dvc.yaml:sweep'" in text
    assert files(root / "outputs" / "sweep") == files(swept)
    registered = json.loads((root / "outputs" / "sweep_register" / "registration.json").read_text())
    assert registered["version"] == 2, "the first one is that of train_sae"
    report = (root / "outputs" / "sweep_register" / "report.html").read_text()
    assert "SAEs that were trained on the same batches" in report
    assert call(root, "dvc", "repro", FILE).stdout.count("Running stage") == 0


def test_what_the_members_have_in_common_is_watched(root: Path) -> None:
    params = root / "params.yaml"
    before = params.read_text()
    try:
        params.write_text(before.replace("learning_rate: 0.002", "learning_rate: 0.001"))
        assert params.read_text() != before
        assert "modified:           train_sae" in call(root, "dvc", "status", f"{FILE}:sweep").stdout
    finally:
        params.write_text(before)
