"""What is rendered from the catalogue: up to date, deterministic, and able to find a hand-made change."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from plmsae.params import ParamsFile
from plmsae.stages import render
from plmsae.stages.catalog import sections, stages, stages_of

ROOT = Path(__file__).parents[2]
PARAMETER_FILES = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]


def test_committed_files_are_what_the_catalogue_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert render.main(["--check"]) == 0


def test_check_names_a_file_that_was_edited_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert render.main([]) == 0
    assert render.main(["--check"]) == 0
    capsys.readouterr()
    dvc = tmp_path / "dvc.yaml"
    dvc.write_text(dvc.read_text().replace("- train_sae\n", "- train_sae.k\n"))
    assert render.main(["--check"]) == 1
    assert capsys.readouterr().out == "differs from the catalogue: dvc.yaml\n"


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.name)
def test_parameter_files_are_valid_and_hold_every_knob(path: Path) -> None:
    file = ParamsFile(path)
    file.check_sections(sections())
    for stage in stages().values():
        file.load(stage.params, stage.section)
        assert set(file.section(stage.section)) == set(stage.params.model_fields), stage.id
    jsonschema.validate(file.data, json.loads(render.params_schema()))


def test_the_schema_refuses_an_unknown_key() -> None:
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    data["train_sae"]["kk"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(render.params_schema()))


def test_dvc_edges_are_the_ports_of_the_catalogue() -> None:
    document = yaml.safe_load(render.dvc_yaml())
    assert "sweep" not in document["stages"], "dvc repro without a target would run it"
    for stage in stages_of("train").values():
        deps = set(document["stages"][stage.name]["deps"])
        assert {f"outputs/{port.source.replace('@', '/')}" for port in stage.inputs} <= deps
        assert f"src/plmsae/stages/{stage.name}.py" in deps


def test_the_sweep_s_graph_is_beside_the_main_one_and_watches_what_the_members_have_in_common() -> None:
    document = yaml.safe_load(render.sweep_dvc_yaml())
    sweep, evaluate, register = (document["stages"][name] for name in ("sweep", "evaluate", "register"))
    assert sweep["params"] == ["sweep", "train_sae"]
    assert {"outputs/ingest", "outputs/extract_activations", "src/plmsae/evaluation"} <= set(sweep["deps"])
    assert {stage["wdir"] for stage in document["stages"].values()} == {"../.."}
    for stage in (evaluate, register):
        assert "outputs/sweep" in stage["deps"]
        assert "outputs/train_sae" not in stage["deps"]
        assert "--input sae=outputs/sweep " in stage["cmd"]
    assert "outputs/sweep_evaluate/concepts" in register["deps"]
    assert register["cmd"].endswith("--output outputs/sweep_register")
    assert register["outs"] == [{"outputs/sweep_register": {"persist": True}}]
    assert set(document) == {"stages"}, "a metric or plot that is not there is a complaint for all who have no sweep"


def test_every_port_reads_the_kind_that_its_source_writes() -> None:
    known = stages()
    order = list(known)
    for stage in known.values():
        for port in stage.inputs:
            assert known[port.source].kind == port.kind
            assert order.index(port.source) < order.index(stage.id)


def test_every_parameter_is_documented() -> None:
    for stage in stages().values():
        for name, field in stage.params.model_fields.items():
            assert field.description, f"{stage.section}.{name}"
