"""doctor: a report of what is there, exit code 2 when something needed is broken, and no trace on disk."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from pathlib import Path

import pytest

from plmsae.cli import main
from plmsae.commands import doctor


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", "--json", *arguments])
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is (code == 0)
    return code, {check["name"]: check for check in answer["checks"]}


def test_a_working_installation_is_well_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, checks = report(capsys)
    assert code == 0, checks
    assert {"python", "libraries", "torch", "torchvision", "mmseqs", "bundled PLM", "disk", "registry"} <= set(checks)
    assert "sha256:" in checks["bundled PLM"]["found"]
    assert list(tmp_path.iterdir()) == []
    assert main(["doctor"]) == 0
    assert "all is well" in capsys.readouterr().out


def test_an_unreachable_registry_is_a_failure_with_its_address(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    code, checks = report(capsys)
    assert code == 2
    assert checks["registry"]["status"] == "failed"
    assert "http://127.0.0.1:1" in checks["registry"]["found"]
    assert report(capsys, "--offline")[0] == 0


def test_other_versions_than_the_locked_ones_are_a_warning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text(f"torch==0.0.1\nnumpy=={importlib.metadata.version('numpy')}\n")
    code, checks = report(capsys, "--offline")
    assert code == 0
    assert checks["lock"]["status"] == "warning"
    assert "locked: 0.0.1" in checks["lock"]["found"]
    assert "numpy" not in checks["lock"]["found"]


def test_a_torchvision_that_does_not_fit_is_a_failure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    code, checks = report(capsys, "--offline")
    assert code == 2
    assert "nms does not exist" in checks["torchvision"]["found"]
    assert "uninstall" in checks["torchvision"]["fix"]


def test_a_crash_inside_a_check_is_a_finding_and_not_a_traceback() -> None:
    def broken() -> list[doctor.Check]:
        raise types.new_class("Odd", (RuntimeError,))("boom")

    (check,) = doctor._guarded(broken)
    assert (check.status, check.found) == ("failed", "Odd: boom")
