"""`plmsae schedule` as a user meets it: what apply, list and delete say and do, and every refusal before that."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae import cli
from plmsae.cluster.schedules import Schedule
from plmsae.cluster.sections import pipeline_arguments
from plmsae.errors import TryAgainError
from plmsae.params import ParamsFile
from tests.cluster.conftest import ROOT, SHA256, SOURCE
from tests.cluster.kfp_server import Fault, KfpServer
from tests.cluster.oci_registry import Registry

PARAMS = ROOT / "params.yaml"
SET = dict(item.split("=") for item in SOURCE[1::2])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "schedules.yaml"


def small(image: str) -> str:
    """A pipeline of `ingest` alone, compiled already; parsing that of `train` takes a second each time."""
    arguments = pipeline_arguments(ParamsFile(PARAMS), ["ingest"])
    types = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN"}
    spec = {
        "pipelineInfo": {"name": "plmsae-small"},
        "schemaVersion": "2.1.0",
        "root": {
            "dag": {"tasks": {"ingest": {"componentRef": {"name": "comp-ingest"}, "taskInfo": {"name": "ingest"}}}},
            "inputDefinitions": {
                "parameters": {name: {"parameterType": types[type(value)]} for name, value in arguments.items()}
            },
        },
        "components": {"comp-ingest": {"executorLabel": "exec-ingest"}},
        "deploymentSpec": {"executors": {"exec-ingest": {"container": {"image": image, "command": ["plmsae"]}}}},
    }
    return yaml.safe_dump(spec)


@pytest.fixture
def entry(image: str, tmp_path: Path) -> dict[str, Any]:
    """A schedule of a package that is compiled already."""
    package = tmp_path / "small.yaml"
    package.write_text(small(image))
    return {"package": str(package), "cron": "30 3 * * sun", "set": SET}


def schedule(kfp: KfpServer, action: str, *options: object) -> int:
    given = [] if action == "delete" else ["--params", str(PARAMS)]
    return cli.main(["schedule", action, "--host", kfp.host, *given, *map(str, options)])


def write(file: Path, **entries: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump({name.replace("_", "-"): item for name, item in entries.items()}))
    return file


def names(kfp: KfpServer) -> dict[str, str]:
    return {item["display_name"]: item["mode"] for item in kfp.state.recurring.values()}


def writes(kfp: KfpServer) -> list[str]:
    return [path.removeprefix("/apis/v2beta1/") for method, path in kfp.state.requests if method != "GET"]


def test_apply_creates_leaves_alone_replaces_and_prunes(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    monthly = {**entry, "cron": "0 4 1 * *", "enabled": False, "set": {**SET, "ingest.min_residues": 16}}
    write(file, weekly=entry, monthly_training=monthly)
    assert schedule(kfp, "apply", file) == 0
    assert "created    monthly-training  0 4 1 * * UTC  plmsae-small-" in capsys.readouterr().out
    assert names(kfp) == {"weekly": "ENABLE", "monthly-training": "DISABLE"}
    of_month = next(item for item in kfp.state.recurring.values() if item["display_name"] == "monthly-training")
    arguments = of_month["runtime_config"]["parameters"]
    assert (arguments["source"], arguments["source_sha256"]) == (SET["ingest.source"], SHA256)
    assert json.loads(arguments["ingest_params"])["min_residues"] == 16
    assert of_month["trigger"] == {"cron_schedule": {"cron": "0 0 4 1 * *"}}

    kfp.state.requests.clear()
    assert schedule(kfp, "apply", file) == 0
    assert capsys.readouterr().out.count("unchanged") == 2
    assert writes(kfp) == []

    write(file, weekly={**entry, "cron": "30 4 * * sun"})
    assert schedule(kfp, "apply", file) == 0
    out = capsys.readouterr().out
    assert "replaced   weekly  30 4 * * sun UTC" in out
    assert "(times)" in out
    assert "left       monthly-training  not in the file; --prune deletes it" in out
    assert schedule(kfp, "apply", file, "--prune", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    (recurring_run_id,) = kfp.state.recurring
    assert record["pruned"] == ["monthly-training"]
    (line,) = record["schedules"]
    assert (line["name"], line["action"], line["recurring_run_id"]) == ("weekly", "unchanged", recurring_run_id)
    assert names(kfp) == {"weekly": "ENABLE"}


def test_check_changes_nothing_and_says_what_would_be(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, weekly=entry, old=entry)
    assert schedule(kfp, "apply", file) == 0
    kfp.state.requests.clear()
    capsys.readouterr()
    write(file, weekly={**entry, "set": {**SET, "ingest.min_residues": 16}}, other=entry)
    assert schedule(kfp, "apply", file, "--check", "--prune") == 0
    out = capsys.readouterr().out
    for line in (
        "ok         images",
        "replace    weekly",
        "(ingest_params.min_residues)",
        "create     other",
        "delete     old",
        "nothing was changed",
    ):
        assert line in out
    assert writes(kfp) == []
    assert schedule(kfp, "apply", file, "--check", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] is True
    assert [item["action"] for item in record["schedules"]] == ["create", "replace"]
    assert record["not_in_the_file"] == ["old"]


def test_a_missing_image_keeps_everything_as_it_is(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], image: str, capsys: Any
) -> None:
    gone = file.with_name("gone.yaml")
    gone.write_text(small(image.partition("@")[0] + ":gone"))
    write(file, good=entry, weekly={**entry, "package": str(gone)})
    assert schedule(kfp, "apply", file, "--check") == 2
    assert "and apply would change nothing either" in capsys.readouterr().out
    assert schedule(kfp, "apply", file) == 2
    assert "is not in the registry" in capsys.readouterr().err
    assert writes(kfp) == []
    assert schedule(kfp, "apply", file, "--skip", "images") == 0
    assert set(names(kfp)) == {"good", "weekly"}


def test_what_a_failure_leaves_the_next_apply_finishes(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, first=entry, second=entry)
    kfp.state.faults = [Fault("recurringruns", 500, methods=("POST",), spared=3)]
    assert schedule(kfp, "apply", file) == TryAgainError.exit_code
    assert "created    first" in capsys.readouterr().out
    kfp.state.faults = []
    assert names(kfp) == {"first": "ENABLE", "second": "DISABLE"}
    assert schedule(kfp, "apply", file) == 0
    assert "enabled    second" in capsys.readouterr().out
    assert names(kfp) == {"first": "ENABLE", "second": "ENABLE"}


def own(text: str) -> str:
    """The example with somebody's own addresses in it."""
    return (text.replace("BUCKET", "proteins").replace("models:/NAME", "models:/plmsae.esm_small.layer2.topk")).replace(
        "HEX", SHA256
    )


def test_the_committed_example_is_applied_once_the_addresses_are_one_s_own(
    kfp: KfpServer,
    registry: Registry,
    image: str,
    package_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PLMSAE_IMAGE", image.partition("@")[0] + ":1.0")
    assert cli.main(["schedule", "apply", "--host", kfp.host]) == 2
    printed = capsys.readouterr().err
    for example in ("models:/NAME@champion", "s3://BUCKET/uniprot_sprot.dat.gz", "ingest.source_sha256 = HEX"):
        assert example in printed
    assert kfp.state.requests == []
    file = tmp_path / "schedules.yaml"
    file.write_text(own((ROOT / "pipelines" / "schedules.yaml").read_text()))
    assert cli.main(["schedule", "apply", str(file), "--host", kfp.host]) == 0
    of_name = {item["display_name"]: item for item in kfp.state.recurring.values()}
    assert set(of_name) == {"weekly-reevaluation", "monthly-training"}
    weekly, monthly = of_name["weekly-reevaluation"], of_name["monthly-training"]
    assert weekly["trigger"] == {"cron_schedule": {"cron": "0 30 3 * * 0"}}
    arguments = weekly["runtime_config"]["parameters"]
    assert arguments["model"] == "models:/plmsae.esm_small.layer2.topk@champion"
    assert arguments["source"] == "s3://proteins/uniprot_sprot.dat.gz"
    # Compiled for the image by digest, as `plmsae compile` does.
    version = monthly["pipeline_version_reference"]["pipeline_version_id"]
    assert kfp.state.packages[version] == package_file.read_bytes()


GUIDE = (ROOT / "docs" / "how-to" / "schedules.md").read_text(encoding="utf-8")


def test_the_guide_s_commands_are_those_of_the_command_line() -> None:
    commands = re.findall(r"^ *(?:run: )?(?:\.venv/bin/)?plmsae (schedule [^#\n]+)", GUIDE, re.MULTILINE)
    parsed = [cli.build_parser("schedule").parse_args(shlex.split(command)) for command in commands]
    assert [item.action for item in parsed] == ["apply", "apply", "list", "delete", "apply", "apply"]
    assert [getattr(item, "prune", None) for item in parsed[-2:]] == [False, True]
    options = set(re.findall(r"`(--[a-z-]+)`", GUIDE.split("Options are those")[1].split("\n\n")[0]))
    assert all(option in _help("apply") for option in options)


def _help(action: str) -> str:
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(["schedule", action, "--help"])
    return out.getvalue()


def test_the_guide_s_tables_and_examples_are_complete() -> None:
    keys = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", GUIDE.split("## What is")[0], re.MULTILINE)))
    )
    assert keys == set(Schedule.model_fields)
    (example, workflow) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL))
    committed = yaml.safe_load((ROOT / "pipelines" / "schedules.yaml").read_text())
    assert example == {name: committed[name] for name in example}
    assert "KFP_TOKEN" in workflow["jobs"]["schedules"]["env"]


def test_namespaces_are_kept_apart(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    kfp.state.multi_user = True
    kfp.state.token = "secret-token"
    monkeypatch.setenv("KFP_TOKEN", "secret-token")
    write(file, weekly={**entry, "experiment": "layers", "service_account": "plmsae-runner"})
    assert schedule(kfp, "apply", file) == 2
    assert "pass --namespace" in capsys.readouterr().err
    assert schedule(kfp, "apply", file, "--namespace", "lab") == 0
    (item,) = kfp.state.recurring.values()
    assert (item["namespace"], item["service_account"]) == ("lab", "plmsae-runner")
    assert schedule(kfp, "list", file, "--namespace", "lab", "--json") == 0
    assert "secret-token" not in capsys.readouterr().out
    assert schedule(kfp, "delete", "weekly", "--namespace", "lab") == 0
    assert kfp.state.recurring == {}


def test_list_shows_what_is_other_than_in_the_file(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, weekly=entry, paused=entry)
    assert schedule(kfp, "apply", file) == 0
    paused = next(item for item in kfp.state.recurring.values() if item["display_name"] == "paused")
    paused["mode"] = "DISABLE"
    write(file, weekly=entry, paused=entry, missing=entry)
    capsys.readouterr()
    assert schedule(kfp, "list", file) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["NAME", "PIPELINE", "TIMES"]
    drift = {line.split()[0]: line.split("  ")[-1].strip() for line in lines}
    assert drift == {"missing": "not on the server", "paused": "disabled on the server", "weekly": "none"}
    assert schedule(kfp, "list", file, "--json") == 0
    record = {line["name"]: line for line in json.loads(capsys.readouterr().out)["schedules"]}
    assert record["weekly"]["drift"] == []
    assert record["weekly"]["next_run"].endswith("03:30")
    assert record["missing"]["enabled"] is None


def test_list_without_a_file_shows_the_server(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert schedule(kfp, "apply", write(file, weekly=entry)) == 0
    kfp.state.recurring["theirs"] = {"recurring_run_id": "theirs", "display_name": "theirs", "mode": "ENABLE"}
    capsys.readouterr()
    monkeypatch.chdir(file.parent)
    assert schedule(kfp, "list", "--json") == 0
    (line,) = json.loads(capsys.readouterr().out)["schedules"]
    assert (line["name"], line["drift"]) == ("weekly", None)
    assert schedule(kfp, "list", "none.yaml") == 2
    assert "does not exist" in capsys.readouterr().err


def test_delete_takes_only_what_apply_made(
    kfp: KfpServer, registry: Registry, file: Path, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert schedule(kfp, "apply", write(file, weekly=entry)) == 0
    kfp.state.recurring["theirs"] = {"recurring_run_id": "theirs", "display_name": "theirs", "mode": "ENABLE"}
    assert schedule(kfp, "delete", "theirs") == 2
    assert schedule(kfp, "delete", "weakly") == 2
    assert "did you mean 'weekly'?" in capsys.readouterr().err
    assert schedule(kfp, "delete", "weekly", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "weekly"
    assert set(kfp.state.recurring) == {"theirs"}
    assert schedule(kfp, "apply", write(file, theirs=entry)) == 2
    assert "was not made by plmsae schedule" in capsys.readouterr().err
    assert schedule(kfp, "apply", write(file, weekly=entry), "--prune") == 0
    assert set(names(kfp)) == {"theirs", "weekly"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cron": "30 3 * *"}, "cron has five fields"),
        (
            {"set": {**SET, "ingest.source": "s3://BUCKET/a.fasta"}},
            "the example's own values are still there: weekly: ",
        ),
        ({"set": {}}, "a file of this machine, which a cluster cannot read"),
        ({"set": {**SET, "ingest.kk": 3}}, "unknown parameter 'ingest.kk'"),
        ({"set": {**SET, "trainsae.k": 3}}, "no stage that reads 'trainsae.k'"),
        ({"set": {**SET, "ingest.min_residues": "eight"}}, "should be a valid integer"),
        ({"package": "none.yaml"}, "package 'none.yaml' cannot be read"),
        ({"package": None, "pipeline": "train"}, "no image is given"),
        ({"package": None, "pipeline": "trian"}, "no image is given"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_sent(
    kfp: KfpServer, file: Path, entry: dict[str, Any], changes: dict[str, Any], message: str, capsys: Any
) -> None:
    given = {name: value for name, value in {**entry, **changes}.items() if value is not None}
    assert schedule(kfp, "apply", write(file, weekly=given)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "weekly" in printed
    assert kfp.state.requests == []


def test_an_action_is_needed_and_json_may_stand_on_either_side(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["schedule"])
    assert caught.value.code == 2
    for command in (["--json", "list"], ["list", "--json"]):
        assert cli.main(["schedule", *command]) == 2
        assert "no address" in json.loads(capsys.readouterr().out)["error"]
    assert cli.main(["schedule", "delete", "weekly"]) == 2
    assert capsys.readouterr().out == ""
