"""models, pull, promote and verify as a user meets them: text, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plmsae.cli import main
from plmsae.registry.register import register
from tests.registry.outputs import FIDELITY, write_outputs

NAME = "plmsae.esm_small.layer3.topk"


@pytest.fixture
def registered(root: Path) -> Path:
    register(write_outputs(root), root)
    return root


def test_models_as_json_is_a_list_of_versions(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert set(item) == {"name", "version", "aliases", "metrics", "tags"}
    assert (item["name"], item["version"], item["aliases"]) == (NAME, 1, ["candidate"])
    assert item["metrics"]["fidelity.fvu"] == FIDELITY["fvu"]
    assert item["tags"]["architecture"] == "topk"


def test_models_as_a_table(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAME", "VERSION", "ALIASES"]
    assert row.split()[:3] == [NAME, "1", "candidate"]
    assert header.index("FVU") == row.index("0.310")
    assert header.index("RECOVERED") == row.index("91.2 %")
    assert main(["models", NAME, "--metrics"]) == 0
    assert "concepts.mean_f1_sae = 0.41" in capsys.readouterr().out


def test_models_of_an_unknown_name_is_an_error(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", NAME + "k"]) == 2
    assert f"did you mean '{NAME}'?" in capsys.readouterr().err


def test_models_without_any(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["models"]) == 0
    assert "dvc repro" in capsys.readouterr().out


def test_pull_then_verify_then_damage(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", f"models:/{NAME}@candidate", "mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "mine", "name": NAME, "version": 1}
    assert main(["verify", "mine", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["kind"] == "sae"
    (registered / "mine" / "config.json").write_text("{}")
    assert main(["verify", "mine"]) == 3
    assert "'config.json' is corrupted" in capsys.readouterr().err
    assert main(["pull", f"models:/{NAME}@candidate", "mine"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_verify_walks_all_outputs_and_reads_a_bare_sae(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "outputs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert main(["verify", "outputs/train_sae/sae"]) == 0
    assert "bare SAE folder" in capsys.readouterr().out
    weights = registered / "outputs" / "train_sae" / "sae" / "sae.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert main(["verify", "outputs/train_sae/sae"]) == 3
    assert main(["verify", "outputs"]) == 3
    assert "sae.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_verify_of_nothing_is_a_user_error(path: str, root: Path) -> None:
    assert main(["verify", path]) == 2


def test_promote_and_refuse(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", NAME, "1"]) == 0
    assert f"models:/{NAME}/1 is champion" in capsys.readouterr().out
    register(write_outputs(registered, seed=1, fidelity={**FIDELITY, "fvu": 0.9}), registered)
    assert main(["promote", NAME, "2"]) == 4
    captured = capsys.readouterr()
    assert "fidelity.fvu = 0.9 is above 0.5" in captured.err
    assert main(["promote", NAME, "2", "--json"]) == 4
    decision = json.loads(capsys.readouterr().out)
    assert decision["promoted"] is False
    assert {check["metric"] for check in decision["checks"] if not check["passed"]} == {"fidelity.fvu"}
    assert main(["models", "--json"]) == 0
    assert [item["aliases"] for item in json.loads(capsys.readouterr().out)] == [["champion"], ["candidate"]]


def test_promote_takes_its_gates_from_the_parameter_file(registered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = "promote:\n  at_least: {}\n  at_most:\n    fidelity:\n      fvu: {limit: 0.2}\n"
    (registered / "params.yaml").write_text(gate)
    assert main(["promote", NAME, "1"]) == 4
    assert "is above 0.2" in capsys.readouterr().err
    assert main(["promote", NAME, "1", "--set", "promote.at_most.fidelity.fvu.limit=0.4"]) == 0
    assert main(["promote", NAME, "1", "--set", "promote.at_most.fidelity.fvu.limt=0.4"]) == 2
    assert "unknown parameter" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["models"], ["pull", "models:/a/1"], ["promote", "a", "1"]])
def test_an_unreachable_registry_exits_with_75(
    verb: list[str], root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main([*verb, "--json"]) == 75
    captured = capsys.readouterr()
    assert "http://127.0.0.1:1" in json.loads(captured.out)["error"]
    assert "Traceback" not in captured.err
