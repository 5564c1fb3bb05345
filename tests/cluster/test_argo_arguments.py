"""The manifests of Argo Workflows: the parameters that the tasks get, schedules, and the command that writes them."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from plmsae import cli
from plmsae.cluster.argo_graph import PIPELINES, graph
from plmsae.errors import UserError
from plmsae.params import ParamsFile, canonical_json, validate
from plmsae.stages.catalog import load_params, stages
from plmsae.stages.components import task_name
from tests.cluster.test_argo import CPU, GPU, PARAMS, SOURCE, Data, check, manifests, templates
from tests.k8s.manifests import load
from tests.workspace import ROOT


def resolved(pipeline: Any, tmp_path: Path, found: list[Data], **knobs: str) -> dict[str, Any]:
    """Stage id -> parameters, from the command lines with the arguments of a run filled in."""
    params, workflow = found
    (tmp_path / "params.yaml").write_text(params["data"]["params.yaml"], encoding="utf-8")
    values = {item["name"]: item.get("value") for item in workflow["spec"]["arguments"]["parameters"]} | knobs
    answer = {}
    for stage in graph(pipeline).stages.values():
        if stage.id in graph(pipeline).given:
            continue
        arguments = templates(workflow)[task_name(stage)]["container"]["args"]
        assert arguments[0] == "--params=/etc/plmsae/params.yaml"
        overrides = [value for option, value in itertools.pairwise(arguments) if option == "--set"]
        for name, value in values.items():
            overrides = [item.replace("{{workflow.parameters." + name + "}}", str(value)) for item in overrides]
        assert "{{" not in str(overrides)
        answer[stage.id] = load_params(ParamsFile(tmp_path / "params.yaml", overrides), stage)
    return answer


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_arguments_give_the_parameters_of_the_file(pipeline: Any, tmp_path: Path) -> None:
    overrides = [*SOURCE, "reevaluate.source=s3://bucket/newest.dat.gz"]
    chosen = graph(pipeline)
    expected = {
        name: load_params(ParamsFile(PARAMS, overrides), stage)
        for name, stage in chosen.stages.items()
        if name not in chosen.given
    }
    assert resolved(pipeline, tmp_path, manifests(pipeline, *overrides)) == expected
    if pipeline == "reevaluate":
        by_hand = resolved(pipeline, tmp_path, manifests(pipeline, *SOURCE), source="s3://bucket/newest.dat.gz")
    else:
        by_hand = resolved(pipeline, tmp_path, manifests(pipeline), **dict(item[7:].split("=") for item in SOURCE))
    assert by_hand == expected


def test_a_knob_reaches_every_stage_that_has_it(tmp_path: Path) -> None:
    knobs = {"seed": "7", "store": "s3://bucket/store", "k": "64", "architecture": "no", "strength": "0.5"}
    found = resolved("train", tmp_path, manifests("train", *SOURCE), **{**knobs, "architecture": "relu"})
    assert {stage_id for stage_id, values in found.items() if getattr(values, "seed", None) == 7} == {
        "ingest",
        "extract_activations",
        "train_sae",
    }
    assert found["extract_activations"].store == "s3://bucket/store"
    assert (found["train_sae"].k, found["train_sae"].architecture, found["steer"].strength) == (64, "relu", 0.5)
    grid = json.dumps({"k": [4, 8]})
    assert resolved("sweep", tmp_path, manifests("sweep", *SOURCE), grid=grid)["sweep"].grid == {"k": [4, 8]}


@pytest.mark.parametrize("store", ["", "s3://bucket/store"])
def test_the_activations_are_those_of_the_registered_sae(store: str, tmp_path: Path) -> None:
    """What `resolve` says takes the place of the file's section, for another model, layer and hook than the file's."""
    params, workflow = manifests("evaluate", "extract_activations.precision=bfloat16", *SOURCE)
    (tmp_path / "params.yaml").write_text(params["data"]["params.yaml"], encoding="utf-8")
    others = {"hook": "mlp", "plm_revision": 'it\'s: "odd" {{[', "also": [], "dtype": "float32", "threads": 1}
    values = {"plm": "esm2_t6_8M_UR50D", "layer": 5, "store": store, "seed": 3}
    said = {**values, "extract_activations_params": canonical_json(others), "uri": "models:/a.b/7"}
    digest = 64 * "1"

    def given(stage_id: str) -> Any:
        container = templates(workflow)[task_name(stages()[stage_id])]["container"]
        overrides = [value for option, value in itertools.pairwise(container["args"]) if option == "--set"]
        for name, value in {**said, "package_sha256": digest}.items():
            overrides = [item.replace("{{inputs.parameters." + name + "}}", str(value)) for item in overrides]
        return load_params(ParamsFile(tmp_path / "params.yaml", overrides), stages()[stage_id])

    section = {**others, **values, "store": store or None}
    assert given("extract_activations") == validate(
        stages()["extract_activations"].params, section, section="extract_activations"
    )
    assert (given("pull").uri, given("pull").package_sha256) == ("models:/a.b/7", digest)
    asked = {item["name"] for item in workflow["spec"]["arguments"]["parameters"]}
    assert {"model", "source", "source_sha256"} <= asked
    assert not {"plm", "layer", "store"} & asked


def test_a_seed_of_the_members_is_not_that_of_the_proteins(tmp_path: Path) -> None:
    overrides = (*SOURCE, "train_sae.seed=5")
    stage = stages()["sweep"]
    found = resolved("sweep", tmp_path, manifests("sweep", *overrides), seed="7")
    assert found["sweep"] == load_params(ParamsFile(PARAMS, overrides), stage)
    assert found["ingest"].seed == 7


def test_a_checksum_of_digits_stays_a_text(tmp_path: Path) -> None:
    found = resolved("train", tmp_path, manifests("train", *SOURCE), source_sha256=64 * "1")
    assert found["ingest"].source_sha256 == 64 * "1"


def test_other_parameters_are_another_map() -> None:
    first, second = manifests(), manifests("train", "train_sae.learning_rate=0.5")
    assert first[0]["metadata"]["name"] != second[0]["metadata"]["name"]
    for params, workflow in (first, second):
        assert params["immutable"] is True
        assert {"name": "params", "configMap": {"name": params["metadata"]["name"]}} in workflow["spec"]["volumes"]
    assert manifests() == first


def test_a_schedule_is_a_cron_workflow_of_the_template() -> None:
    found = manifests("train", *SOURCE, schedule="0 2 * * 0", storage="20Gi", access_mode="ReadWriteOnce")
    for item in found:
        check(item)
    workflow, clock = found[1], found[2]
    assert clock["kind"] == "CronWorkflow"
    assert clock["spec"]["schedules"] == ["0 2 * * 0"]
    assert clock["spec"]["concurrencyPolicy"] == "Forbid"
    assert clock["spec"]["workflowSpec"]["activeDeadlineSeconds"] < 7 * 24 * 3600, "it makes room for the next"
    assert clock["spec"]["workflowSpec"]["workflowTemplateRef"] == {"name": workflow["metadata"]["name"]}
    assert all("value" in item for item in workflow["spec"]["arguments"]["parameters"])
    (claim,) = workflow["spec"]["volumeClaimTemplates"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}}


@pytest.mark.parametrize(
    ("overrides", "schedule", "message"),
    [
        ([], "0 2 * * 0", "asks nobody for source and source_sha256"),
        (SOURCE[:1], "0 2 * * 0", "asks nobody for"),
        (SOURCE, "0 0 2 * * 0", "is no schedule"),
        (SOURCE, "soon", "is no schedule"),
    ],
)
def test_a_schedule_that_cannot_start_is_refused(overrides: list[str], schedule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifests("train", *overrides, schedule=schedule)


@pytest.mark.parametrize("overrides", [["reevaluate.source=s3://bucket/newest.dat.gz"], SOURCE[:1]])
def test_a_re_evaluation_by_the_clock_asks_for_the_newest_bytes(overrides: list[str]) -> None:
    """An address is enough: nothing is pinned."""
    found = manifests("reevaluate", *overrides, schedule="0 3 * * 0")
    for item in found:
        check(item)
    assert found[2]["spec"]["schedules"] == ["0 3 * * 0"]
    given = {item["name"]: item["value"] for item in found[1]["spec"]["arguments"]["parameters"]}
    assert given == {"model": "", "source": overrides[0].partition("=")[2]}
    with pytest.raises(UserError, match="asks nobody for source") as caught:
        manifests("reevaluate", schedule="0 3 * * 0")
    assert "reevaluate.source=s3://" in str(caught.value)


def test_a_file_of_this_machine_is_no_default() -> None:
    parameters = manifests()[1]["spec"]["arguments"]["parameters"]
    assert [item["name"] for item in parameters if "value" not in item] == ["source", "source_sha256"]


def test_compile_writes_the_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(ROOT)
    output = tmp_path / "argo.yaml"
    command = ["compile", "train", "--argo", "--image", CPU, "--gpu-image", GPU, "--output", str(output)]
    assert cli.main(command) == 0
    assert f"kubectl apply -f {output}" in capsys.readouterr().out
    assert load(output) == manifests()
    options = ["--set", SOURCE[0], "--set", SOURCE[1], "--schedule", "0 2 * * 0", "--one-node", "--storage", "20Gi"]
    assert cli.main([*command, *options, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sha256"]) == 64
    expected = manifests("train", *SOURCE, schedule="0 2 * * 0", storage="20Gi", access_mode="ReadWriteOnce")
    assert load(output) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--argo", "--image", "plmsae:dev"], "not named by digest"),
        (["evaluat", "--argo", "--image", CPU], "no Argo manifest of 'evaluat'"),
        (["train", "--argo", "--image", CPU, "--state-claim", "x"], "the volume of the run keeps the checkpoints"),
        (["train", "--argo", "--image", CPU, "--set", "train_sae.q=1"], "train_sae.q"),
        (["train", "--image", CPU, "--schedule", "0 2 * * 0"], "are for --argo"),
    ],
)
def test_compile_refuses(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(ROOT)
    assert cli.main(["compile", *arguments, "--output", str(tmp_path / "x.yaml")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_the_documented_commands_make_what_the_page_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (ROOT / "docs" / "how-to" / "argo.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in page.splitlines() if line.startswith("    plmsae compile")]
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    monkeypatch.chdir(tmp_path)
    named: dict[str, set[str]] = {}
    for line in lines:
        command = shlex.split(line.replace("REGISTRY", "registry.example.org").replace("DIGEST", 64 * "a"))
        assert command.pop(0) == "plmsae"
        assert cli.main(command) == 0
        pipeline = command[1]
        assert f"-> {pipeline}.yaml\nkubectl apply -f {pipeline}.yaml" in capsys.readouterr().out
        assert f"kubectl apply -n plmsae -f {pipeline}.yaml" in page
        workflow, *clock = load(tmp_path / f"{pipeline}.yaml")[1:]
        named[workflow["metadata"]["name"]] = {item["name"] for item in workflow["spec"]["arguments"]["parameters"]}
        assert bool(clock) == ("--schedule" in command)
    assert set(named) == {"plmsae-train", "plmsae-reevaluate"}
    assert "--from workflowtemplate/plmsae-train" in page
    asked = re.findall(r"-p (\w+)=", page.partition("argo submit")[2].partition("##")[0])
    assert asked
    assert set(asked) <= named["plmsae-train"]
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows if name in PIPELINES] == list(PIPELINES)
