"""The command line: messages and exit codes as a user meets them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from plmsae import cli

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_verb_has_its_module_and_its_summary() -> None:
    for verb, summary in cli.VERBS.items():
        module = importlib.import_module(f"plmsae.commands.{verb}")
        assert summary == module.SUMMARY


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for verb in cli.VERBS:
        assert re.search(rf"\n    {verb}\s", text)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_itself_and_takes_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_an_unknown_verb_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["trian"])
    assert caught.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_an_unknown_stage_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "trian_sae"]) == 2
    assert "did you mean 'train_sae'?" in capsys.readouterr().err


def test_a_missing_parameter_file_says_where_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "ingest"]) == 2
    assert "run in the folder that holds params.yaml" in capsys.readouterr().err


def test_an_error_is_json_on_stdout_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "ingest", "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"error", "where", "fix"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_sae.kk=8", "unknown parameter 'train_sae.kk'"),
        ("train_sae.k=eight", "'train_sae.k' = 'eight': should be a valid integer"),
        ("train_sae.k=8.5", "'train_sae.k' = 8.5: should be a valid integer"),
        ("trainsae.k=8", "unknown section 'trainsae'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "train_sae", "--params", str(PARAMS), "--set", override]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_stage_without_its_input_names_what_makes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "train_sae", "--params", str(PARAMS)]) == 2
    assert "plmsae run extract_activations" in capsys.readouterr().err


def test_a_malformed_input_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "train_sae", "--params", str(PARAMS), "--input", "activations"]) == 2
    assert "port=folder" in capsys.readouterr().err
