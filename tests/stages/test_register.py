"""The register stage through the wrapper: its outputs repeat byte for byte and name no place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plmsae.errors import TryAgainError
from plmsae.stages import register
from plmsae.stages.execute import execute
from plmsae.stages.register import RegisterParams
from tests.registry.fixtures import empty_registry, root
from tests.registry.outputs import write_outputs

__all__ = ["empty_registry", "root"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_output_names_the_version_and_repeats(root: Path) -> None:
    write_outputs(root)
    result = execute(register.STAGE, RegisterParams(), root=root)
    output = root / "outputs" / "register"
    record = json.loads((output / "registration.json").read_text())
    assert set(record) == {"name", "version", "sae_sha256", "evidence_sha256"}
    assert (record["name"], record["version"]) == ("plmsae.esm_small.layer3.topk", 1)
    assert "models:/plmsae.esm_small.layer3.topk/1" in result.summary
    first = contents(output)
    assert {"registration.json", "report.html", "metrics.json", "summary.md", "manifest.json"} == set(first)
    execute(register.STAGE, RegisterParams(), root=root)
    assert contents(output) == first
    assert not any(str(root).encode() in data for data in first.values())


def test_an_unreachable_registry_leaves_the_old_output(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_outputs(root)
    execute(register.STAGE, RegisterParams(), root=root)
    first = contents(root / "outputs" / "register")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(TryAgainError, match="cannot be reached"):
        execute(register.STAGE, RegisterParams(notes="other"), root=root)
    assert contents(root / "outputs" / "register") == first
