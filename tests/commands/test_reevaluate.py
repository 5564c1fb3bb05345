"""`plmsae reevaluate` on a registry, data, PLM and SAE that are real and small."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from plmsae.artifacts.manifest import Manifest, list_files, read_manifest, write_manifest
from plmsae.cli import build_parser, main
from plmsae.errors import DataError, GateError
from plmsae.params import ParamsFile
from plmsae.registry import reevaluation
from plmsae.registry.connection import connect
from plmsae.registry.evidence import Evidence
from plmsae.registry.reevaluation import ended_as_drifted
from plmsae.registry.register import register
from plmsae.registry.versions import aliases_of, get_version
from plmsae.saes import load_folder, save
from plmsae.stages import catalog, execute
from plmsae.stages.reevaluation_params import ReevaluateParams
from tests.pipeline.conftest import Finished, finished
from tests.registry.test_webhook import Hook, hook
from tests.workspace import FIXTURE, ROOT

__all__ = ["finished", "hook"]  # fixtures

NAME = "plmsae.esm_small.layer2.topk"
CHAMPION = f"models:/{NAME}@champion"
NO_TOLERANCES = ["--set", "reevaluate.more_is_better={}", "--set", "reevaluate.less_is_better={}"]
SETTINGS = {"min_pairs": 5, "num_resamples": 200}


def with_settings(root: Path, **sections: dict[str, Any]) -> None:
    """Write these parameters into the file of a working folder."""
    file = root / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    for section, values in {"reevaluate": SETTINGS, **sections}.items():
        params[section] |= values
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def made(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a champion of which every number is fresh, and everything that it was made from."""
    root = finished.copy_to(tmp_path_factory.mktemp("reevaluate") / "work")
    with_settings(root)
    return root


def evidence(root: Path) -> Evidence:
    folders = {port.name: root / "outputs" / Path(*port.source.split("@")) for port in catalog.stage("register").inputs}
    return Evidence(folders=folders, manifests={port: read_manifest(folder) for port, folder in folders.items()})


def champion(root: Path, outputs: Evidence) -> int:
    version = register(outputs, root).version
    with connect(root) as client:
        client.set_registered_model_alias(NAME, "champion", str(version))
    return version


def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "PLMSAE_WEBHOOK"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return here(shutil.copytree(made, tmp_path / "work", symlinks=True), monkeypatch)


@pytest.fixture
def unchanged(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, for what changes nothing in it."""
    return here(made, monkeypatch)


def run(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["reevaluate", CHAMPION, "--json", *options]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def causes(found: dict[str, Any]) -> dict[str, list[str]]:
    return {evaluation: sorted(each) for evaluation, each in found["causes"].items()}


def tags_of(version: int) -> dict[str, str]:
    with connect() as client:
        return get_version(client, NAME, version).tags


def test_a_champion_of_which_nothing_changed_is_not_evaluated(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tags_of(1)
    assert task("changes").values == {"uri": f"models:/{NAME}/1", "action": "nothing"}
    assert "Nothing has changed" in (root / "outputs" / "changes" / "summary.md").read_text()
    assert task("verdict", f"models:/{NAME}/1").summary.endswith("is fine.")
    assert task("reevaluate", f"models:/{NAME}/1").values == {"verdict": "fine"}
    page = (root / "outputs" / "reevaluate" / "report.html").read_text(encoding="utf-8")
    assert "Nothing has changed, nothing was evaluated again." in page
    found = run(capsys)
    assert (found["verdict"], found["number"], found["evaluated"]) == ("fine", 0, [])
    assert found["unchanged"] == ["fidelity", "concepts"]
    assert tags_of(1) == before
    # Where the files lie, what they are called and how fast it goes are no changes.
    (root / "data" / "swissprot.tsv.gz").rename(root / "data" / "other.tsv.gz")
    quick = ("--set", "evaluate.fidelity.threads=2")
    assert run(capsys, "--data", "data/other.tsv.gz", *quick)["evaluated"] == []
    assert main(["reevaluate", CHAMPION, "--data", "data/other.tsv.gz"]) == 0
    assert "nothing has changed, nothing was evaluated" in capsys.readouterr().out


@pytest.mark.long
def test_asked_for_everything_the_same_numbers_come_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--all", "--report", "seen")
    assert causes(found) == {"fidelity": ["asked"], "concepts": ["asked"]}
    assert found["verdict"] == "fine"
    assert {each["metric"]: each["difference"] for each in found["drift"]} == {
        "fidelity.masked_loss_recovered_mean": 0.0,
        "fidelity.fvu": 0.0,
        "concepts.mean_f1_sae": 0.0,
    }
    with connect() as client:
        metrics = get_version(client, NAME, 1).metrics
    for each in found["drift"]:
        assert metrics[f"reevaluation.{each['metric']}"] == metrics[each["metric"]] == pytest.approx(each["now"])
        assert each["num_pairs"] >= 5
    # The pipeline's outputs were read, not made again, and nothing is left behind.
    assert not list((root / ".plmsae" / "reevaluate").iterdir())
    assert "Re-evaluation 1 of models:/" in (root / "seen" / "report.html").read_text(encoding="utf-8")
    assert (root / "seen" / "history.png").read_bytes()[:4] == b"\x89PNG"
    assert run(capsys)["evaluated"] == []


@pytest.mark.long
def test_a_changed_parameter_concerns_its_evaluation_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = ("--set", "evaluate.concepts.min_instances=4")
    found = run(capsys, *changed)
    assert causes(found) == {"concepts": ["parameters"]}
    assert found["causes"]["concepts"]["parameters"] == ["evaluate@concepts.min_instances: 3 -> 4"]
    assert found["unchanged"] == ["fidelity"]
    assert run(capsys, *changed)["evaluated"] == []


@pytest.mark.long
def test_a_new_release_is_told_from_everything_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = gzip.decompress(FIXTURE.read_bytes()).splitlines(keepends=True)
    new = root / "data" / "2026_01.tsv.gz"
    new.write_bytes(gzip.compress(b"".join(lines[:-5]), mtime=0))
    found = run(capsys, "--data", "data/2026_01.tsv.gz", "--set", "ingest.release='2026_01'", "--report", "seen")
    assert causes(found) == {"fidelity": ["data"], "concepts": ["data"]}
    sha256 = hashlib.sha256(new.read_bytes()).hexdigest()
    assert found["causes"]["fidelity"]["data"][0].endswith(f"-> {sha256[:12]}")
    fidelity = next(each for each in found["drift"] if each["metric"] == "fidelity.fvu")
    with connect() as client:
        whole = get_version(client, NAME, 1).metrics["fidelity.num_proteins"]
    assert 5 <= fidelity["num_pairs"] <= whole
    assert fidelity["difference"] == pytest.approx(0.0, abs=1e-3)  # the proteins in common are the same
    (row, *_) = csv.DictReader((root / "seen" / "history.csv").open(encoding="utf-8"))
    assert (row["number"], row["causes"], row["data_release"], row["drifted"]) == ("1", "data", "2026_01", "False")
    assert run(capsys, "--data", "data/2026_01.tsv.gz")["evaluated"] == []


@pytest.mark.long
def test_new_weights_of_the_plm_are_told_from_everything_else(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "src" / "plmsae" / "plms" / "small", root / "plm")
    with_settings(root, extract_activations={"plm": "./plm"})
    file = ParamsFile(root / "params.yaml")
    for stage_id in (
        "extract_activations",
        "train_sae",
        *(stage for stage in catalog.stages_of("train") if "@" in stage),
    ):
        stage = catalog.stage(stage_id)
        execute.execute(stage, catalog.load_params(file, stage), root=root)
    monkeypatch.setattr("tests.commands.test_reevaluate.NAME", "plmsae.plm.layer2.topk")
    monkeypatch.setattr("tests.commands.test_reevaluate.CHAMPION", "models:/plmsae.plm.layer2.topk@champion")
    champion(root, evidence(root))
    weights = root / "plm" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    noisy = {name: _noisy(value, 0.02, generator) for name, value in load_file(weights).items()}
    save_file(noisy, weights, {"format": "pt"})
    old = tags_of(1)["plm_revision"]
    found = _any_verdict(capsys)
    assert causes(found) == {"fidelity": ["plm"], "concepts": ["plm"]}
    assert found["causes"]["fidelity"]["plm"][0].startswith(f"./plm@{old} -> ./plm@sha256:")
    assert main(["reevaluate", CHAMPION, "--set", "reevaluate.plm_revision=recorded", "--all"]) == 2
    assert "has revision" in capsys.readouterr().err


def _any_verdict(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["reevaluate", CHAMPION, "--json"]) in (0, 4)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _noisy(value: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """With normal noise of so much of its own size."""
    if not value.is_floating_point():
        return value
    size = value.float().square().mean().sqrt()
    return (value.float() + share * size * torch.randn(value.shape, generator=generator)).to(value.dtype)


@pytest.mark.long
def test_changed_code_is_told_from_everything_else(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = shutil.copytree(execute.PACKAGE, root / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(execute, "PACKAGE", package)
    assert run(capsys)["evaluated"] == []
    with (package / "evaluation" / "fidelity.py").open("a", encoding="utf-8") as handle:
        handle.write("\n# changed\n")
    found = run(capsys)
    assert causes(found) == {"fidelity": ["code"], "concepts": ["code"]}
    assert [line.partition(":")[0] for line in found["causes"]["fidelity"]["code"]] == ["evaluate@fidelity"]
    assert all(each["difference"] == 0 for each in found["drift"])
    assert run(capsys)["evaluated"] == []


def noise_on_the_champion(root: Path) -> int:
    """A champion with 10 % noise on its weights, registered with the numbers of the clean one."""
    folder = root / "outputs" / "train_sae"
    sae = load_folder(folder / "sae").requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for value in sae.parameters():
        value.copy_(_noisy(value, 0.1, generator))
    shutil.rmtree(folder / "sae")
    save(sae, folder / "sae")
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    write_manifest(folder, Manifest(**{**manifest.model_dump(), "files": list_files(folder)}))
    return champion(root, evidence(root))


def task(stage_id: str, model: str = CHAMPION) -> execute.StageResult:
    """The stage, as `plmsae run` runs it here."""
    stage = catalog.stage(stage_id)
    params = catalog.load_params(ParamsFile(Path("params.yaml"), [f"reevaluate.model={model}"]), stage)
    return execute.execute(stage, params, root=Path.cwd())


def test_noise_on_the_weights_is_drift(
    root: Path, capsys: pytest.CaptureFixture[str], hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = noise_on_the_champion(root)
    assert version == 2
    with connect() as client:
        aliases = aliases_of(client, NAME)
    hook.status = 500
    monkeypatch.setenv("KFP_RUN_ID", "run-6")
    monkeypatch.setenv("PLMSAE_IMAGE_REF", "host/plmsae@sha256:abc")
    found = run(capsys, "--webhook", hook.url, code=4)
    assert causes(found) == {"fidelity": ["sae"], "concepts": ["sae"]}
    assert (found["verdict"], found["version"]) == ("drifted", 2)
    assert "fidelity.fvu" in [each["metric"] for each in found["drift"] if each["drifted"]]
    with connect() as client:
        assert aliases_of(client, NAME) == aliases
    tags = tags_of(2)
    assert tags["drift"] == "true"
    record = json.loads(tags["reevaluation.1"])
    assert record["verdict"] == "drifted"
    assert (record["facts"]["kfp_run_id"], record["facts"]["image"]) == ("run-6", "host/plmsae@sha256:abc")
    assert "secret" not in json.dumps(tags)
    # Unchanged: nothing is evaluated, the verdict stands, and the webhook that failed is told now, once.
    assert len(hook.received) == 1
    hook.status = 200
    for _ in range(2):
        again = run(capsys, "--webhook", hook.url, code=4)
        assert (again["evaluated"], again["number"], again["drift"]) == ([], 1, found["drift"])
    assert len(hook.received) == 2
    message = json.loads(hook.received[-1][2])
    assert (message["event"], message["model"], message["number"]) == ("drifted", f"models:/{NAME}/2", 1)
    assert str(root) not in hook.received[-1][2].decode()
    # The tasks of the pipeline say the same, and the one that judges fails.
    assert task("changes").values == {"uri": f"models:/{NAME}/2", "action": "drifted"}
    assert (root / "outputs" / "changes" / "values" / "action").read_text() == "drifted"
    monkeypatch.setenv("PLMSAE_WEBHOOK", hook.url)
    monkeypatch.setenv("KFP_RUN_ID", "run-7")
    with pytest.raises(GateError, match=rf"'models:/{NAME}/2' has drifted: .*fidelity\.fvu"):
        task("verdict")
    assert ended_as_drifted(CHAMPION)
    monkeypatch.setenv("KFP_RUN_ID", "run-8")
    assert not ended_as_drifted(CHAMPION)
    assert len(hook.received) == 2, "told before"
    # Never promoted; the clean version is not concerned.
    assert main(["promote", NAME, "2", "--set", "promote.at_least={}", "--set", "promote.at_most={}"]) == 4
    assert "has drifted" in capsys.readouterr().err
    assert "drift" not in tags_of(1)


@pytest.mark.long
def test_a_task_that_was_killed_goes_on_behind_what_it_had_finished(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noise_on_the_champion(root)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(reevaluation, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            task("reevaluate")
    assert "reevaluation.1" not in tags_of(2)
    caplog.set_level("INFO", logger="plmsae")
    caplog.clear()
    assert task("reevaluate").values == {"verdict": "drifted"}
    again = [record.getMessage() for record in caplog.records]
    for evaluation in ("fidelity", "concepts"):
        (line,) = [line for line in again if line.startswith(f"evaluate@{evaluation}")]
        assert "is read from" in line
        assert "checkpoints" in line
    assert not list((root / ".plmsae" / "checkpoints").iterdir())
    output = root / "outputs" / "reevaluate"
    assert json.loads((output / "metrics.json").read_text())["num_drifted"] >= 1
    assert "Re-evaluation 1 of models:/" in (output / "report.html").read_text(encoding="utf-8")


def test_a_failure_is_told_without_its_message(unchanged: Path, capsys: pytest.CaptureFixture[str], hook: Hook) -> None:
    options = ["--webhook", hook.url, "--data", "data/absent.tsv.gz"]
    assert main(["reevaluate", CHAMPION, *options]) == 2
    assert "absent.tsv.gz" in capsys.readouterr().err
    message = json.loads(hook.received[0][2])
    assert (message["event"], message["exit_code"]) == ("failed", 2)
    assert "absent" not in hook.received[0][2].decode()


def test_a_crash_is_told_and_a_key_that_stops_it_is_not(
    unchanged: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (RuntimeError("secret path"), KeyboardInterrupt()):

        def crash(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr("plmsae.stages.reevaluation.reevaluate", crash)
        if isinstance(error, RuntimeError):
            with pytest.raises(RuntimeError):
                main(["reevaluate", CHAMPION, "--webhook", hook.url])
        else:
            assert main(["reevaluate", CHAMPION, "--webhook", hook.url]) == 130
    ((_, _, body),) = hook.received
    assert json.loads(body)["exit_code"] == 1
    assert b"secret path" not in body


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--webhook", "file:///etc/passwd"], "webhook is not a web address"),
        (["--set", "reevaluate.evaluations=[fidelty]", *NO_TOLERANCES], "did you mean 'fidelity'?"),
        (
            ["--set", "reevaluate.evaluations=[layers]", *NO_TOLERANCES],
            "'layers' trains SAEs, so it cannot be repeated",
        ),
        (["--set", "reevaluate.evaluations=[controls]", *NO_TOLERANCES], "'controls' trains SAEs"),
        (["--set", "reevaluate.stages.train_sae={}"], "does not run 'train_sae'"),
        (["--set", "reevaluate.stages.ingest.sed=1"], "did you mean 'seed'?"),
        (["--set", "reevaluate.evaluations=[concepts]"], "'fidelity' has a tolerance"),
        (["--set", "reevaluate.less_is_better.fidelity={fvuu: 0.1}"], "did you mean 'fvu'?"),
        (["--set", "reevaluate.min_pair=3"], "did you mean 'min_pairs'?"),
    ],
)
def test_wrong_settings_are_refused(
    unchanged: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reevaluate", CHAMPION, *options]) == 2
    assert message in capsys.readouterr().err


def test_an_edited_record_is_a_data_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with connect() as client:
        client.set_model_version_tag(NAME, "1", "reevaluation.1", '{"number": 1}')
    assert main(["reevaluate", CHAMPION]) == DataError.exit_code
    assert "'reevaluation.1'" in capsys.readouterr().err


def test_the_documented_commands_are_accepted() -> None:
    parser = build_parser("reevaluate")
    for page in ("reevaluate.md", "registry.md"):
        text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
        lines = re.findall(r"plmsae (reevaluate models:[^#>\n]*)", text)
        assert lines
        for line in lines:
            assert parser.parse_args(shlex.split(line)).model in ("models:/NAME@champion", "models:/NAME@candidate")


def test_the_defaults_are_those_of_params_yaml() -> None:
    assert ParamsFile(ROOT / "params.yaml").load(ReevaluateParams, "reevaluate") == ReevaluateParams()
