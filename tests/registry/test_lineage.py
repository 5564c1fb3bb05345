"""Lineage: forward to everything that a version was made from, back from each of it, and no guesses in between."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from plmsae.cli import build_parser, main
from plmsae.errors import DataError, UserError
from plmsae.registry.connection import connect
from plmsae.registry.evidence import Evidence
from plmsae.registry.gates import Gates
from plmsae.registry.lineage import derived_from, lineage
from plmsae.registry.lineage_figure import columns, edges
from plmsae.registry.lineage_text import tree
from plmsae.registry.origin import dvc_hashes
from plmsae.registry.promote import promote
from plmsae.registry.register import register
from plmsae.registry.rollback import rollback
from tests.registry.outputs import write_outputs

NAME = "plmsae.esm_small.layer3.topk"
DIGEST = "sha256:" + "a" * 64
IMAGE = f"registry.example.org/plmsae@{DIGEST}"
RUN = "5b1f9c0e-7d3a-4c58-9f10-2a61f0f5d0aa"
DATA = "7595f54d7f1e438748e16c3a2e1d31904714e3995a46b7b8845769ef8d8469c7"
RAW = "7ac85562aeb5490264b50cb7a0fda61f"


def as_dvc_does(root: Path, evidence: Evidence) -> dict[str, str]:
    """`dvc.lock` and the directory objects of DVC's cache for the outputs: md5 of a sorted list of md5 and path."""
    stages, expected = {}, {"data/proteins.fasta": RAW}
    for port, folder in evidence.folders.items():
        listed = [
            {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(folder).as_posix()}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        text = json.dumps(listed, sort_keys=True)
        digest = hashlib.md5(text.encode()).hexdigest() + ".dir"
        place = root / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        out = folder.relative_to(root).as_posix()
        deps = [{"path": "data/proteins.fasta", "md5": RAW}, {"path": "src/plmsae/proteins", "md5": "0" * 32}]
        stages[port] = {"outs": [{"path": out, "md5": digest}], "deps": deps if port == "sequences" else []}
        expected[port] = digest
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    (root / ".dvc" / "config").write_text("[core]\n    remote = demo\n['remote \"demo\"']\n    url = ../demo\n")
    return expected


@pytest.fixture
def full(root: Path, monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """Everything known: a git commit, DVC, an image, a Kubeflow run; registered, promoted, a second version beside."""

    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(root), *arguments]
        subprocess.run(command, check=True, capture_output=True)

    git("init", "--quiet")
    (root / "params.yaml").write_text("a: 1\n")
    git("add", "params.yaml")
    git("commit", "--quiet", "--message", "start")
    monkeypatch.setenv("PLMSAE_IMAGE_REF", IMAGE)
    monkeypatch.setenv("KFP_RUN_ID", RUN)
    evidence = write_outputs(root, data=DATA)
    as_dvc_does(root, evidence)
    register(evidence, root)
    promote(NAME, 1, Gates(), root, reason="the first")
    return evidence


def commit(root: Path) -> str:
    return subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()


def test_forward_and_back(full: Evidence, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lineage(f"models:/{NAME}@champion", root)
    assert found == lineage(NAME, root) == lineage(f"models:/{NAME}/1", root)
    assert (found["uri"], found["aliases"]) == (f"models:/{NAME}/1", ["candidate", "champion"])
    assert found["code"] == {
        "git_commit": commit(root),
        "git_dirty": False,
        "image": IMAGE,
        "image_digest": DIGEST,
        "plmsae": "0.1.0",
    }
    assert (found["data"]["sha256"], found["data"]["licence"]) == (DATA, "CC BY 4.0")
    assert (found["plm"]["name"], found["plm"]["layer"]) == ("esm_small", 3)
    assert found["plm"]["revision"].startswith("sha256:")
    assert found["runs"]["kfp_run_id"] == RUN
    assert set(found["stages"]) == set(full.folders)
    assert found["stages"]["sae"]["params"] == {"k": 8, "seed": 0}
    assert found["stages"]["fidelity"]["inputs"]["sae"] == found["stages"]["sae"]["manifest_sha256"]
    assert found["dvc"] == as_dvc_does(root, full)
    (event,) = found["history"]
    assert (event["kind"], event["version"], event["reason"]) == ("promotion", 1, "the first")
    text = "\n".join(tree(found))
    for value in (DATA, IMAGE, RUN, commit(root), "parameters\n│  │     └─ k=8, seed=0", "fidelity.fvu = 0.31", RAW):
        assert value in text
    # The run's page, the raw files, and the code of each stage: these outputs were made without them.
    assert text.count("not recorded") == 2 + len(found["stages"])
    for of, what in {
        DATA: "data",
        found["stages"]["concepts"]["manifest_sha256"]: "manifest of concepts",
        found["sha256"]["weights"]: "weights",
        found["plm"]["revision"]: "revision of the PLM",
        commit(root)[:7]: "git commit",
        IMAGE: "image",
        DIGEST.upper().replace("SHA256", "sha256"): "image",
        RUN: "Kubeflow run",
        RAW: "data/proteins.fasta in DVC",
        found["dvc"]["sae"]: "sae in DVC",
    }.items():
        rows = derived_from(of, root)
        assert [row["uri"] for row in rows] == [f"models:/{NAME}/1"]
        assert what in rows[0]["what"], of
    assert derived_from("f" * 64, root) == []
    assert main(["lineage", "--of", DATA[:10]]) == 0
    assert capsys.readouterr().out == f"models:/{NAME}/1 (candidate, champion): data\n"


def test_several_versions_come_from_the_same_data(full: Evidence, root: Path) -> None:
    register(write_outputs(root, seed=1, data=DATA), root)
    found = derived_from(DATA, root)
    assert [(row["version"], row["aliases"]) for row in found] == [(1, ["champion"]), (2, ["candidate"])]
    assert [row["version"] for row in derived_from(lineage(f"models:/{NAME}/2", root)["sha256"]["weights"], root)] == [
        2
    ]


def test_what_is_not_recorded_is_said_and_not_guessed(root: Path) -> None:
    evidence = write_outputs(root)
    register(evidence, root)
    found = lineage(NAME, root)
    assert found["code"]["git_commit"] is found["code"]["git_dirty"] is found["code"]["image_digest"] is None
    assert found["runs"]["kfp_run_id"] is found["dvc"] is found["data"]["raw_files"] is None
    text = "\n".join(tree(found))
    for line in ("git commit: not recorded", "image: not recorded", "Kubeflow run: not recorded", "DVC: not recorded"):
        assert line in text
    assert "history: not recorded" in text


def test_a_version_from_before_the_record_was_kept_has_what_its_tags_and_manifest_say(root: Path) -> None:
    evidence = write_outputs(root)
    register(evidence, root)
    sae = lineage(NAME, root)["stages"]["sae"]["manifest_sha256"]
    package = next((root / ".plmsae" / "mlflow" / "artifacts").rglob("lineage.json")).parent
    manifest = json.loads((package / "manifest.json").read_text())
    del manifest["files"]["lineage.json"]
    (package / "manifest.json").write_text(json.dumps(manifest))
    (package / "lineage.json").unlink()
    with connect(root) as client:
        for tag in ("manifests", "data_sha256"):
            client.delete_model_version_tag(NAME, "1", tag)
    found = lineage(NAME, root)
    assert found["stages"]["sae"] == {
        "stage": None,
        "manifest_sha256": sae,
        "code_sha256": None,
        "inputs": None,
        "params": None,
        "source_files": None,
        "environment": None,
    }
    assert found["data"]["sha256"] is None
    assert "parameters: not recorded" in "\n".join(tree(found))
    assert [row["what"] for row in derived_from(sae, root)] == [["manifest of sae"]]


def test_a_record_that_was_changed_is_named(root: Path) -> None:
    register(write_outputs(root), root)
    with connect(root) as client:
        client.set_model_version_tag(NAME, "1", "manifests", json.dumps({"sae": "0" * 64}))
    with pytest.raises(DataError, match="the manifest of 'sae' is 0000"):
        lineage(NAME, root)
    with connect(root) as client:
        client.delete_model_version_tag(NAME, "1", "manifests")
    path = next((root / ".plmsae" / "mlflow" / "artifacts").rglob("lineage.json"))
    path.write_text(path.read_text().replace('"k": 8', '"k": 9'))
    with pytest.raises(DataError, match=r"'lineage\.json' of version 1 .* is missing or damaged"):
        lineage(NAME, root)


def test_dvc_is_recorded_only_where_its_entry_is_of_these_bytes(root: Path) -> None:
    evidence = write_outputs(root)
    assert dvc_hashes(evidence, root) == {}
    expected = as_dvc_does(root, evidence)
    assert dvc_hashes(evidence, root) == expected
    again = write_outputs(root, settings={"seed": 1})  # without DVC: the lock speaks of other bytes
    assert dvc_hashes(again, root) == {port: md5 for port, md5 in expected.items() if port != "fidelity"}
    (root / ".dvc" / "cache").rename(root / "elsewhere")
    assert dvc_hashes(evidence, root) == {}
    (root / ".dvc" / "config.local").write_text("[cache]\n    dir = ../elsewhere\n")
    assert dvc_hashes(again, root).keys() == expected.keys() - {"fidelity"}
    (root / "dvc.lock").write_text("stages: [what")
    assert dvc_hashes(again, root) == {}


@pytest.mark.parametrize(("built", "dirty"), [("c" * 40, "clean"), ("c" * 40 + "-dirty", "with uncommitted changes")])
def test_an_image_says_the_commit_of_its_code(
    root: Path, built: str, dirty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLMSAE_GIT_COMMIT", built)
    register(write_outputs(root), root)
    assert f"git commit: {'c' * 40} ({dirty})" in "\n".join(tree(lineage(NAME, root)))


def test_a_rollback_is_part_of_the_history_of_both(root: Path) -> None:
    for seed in (0, 1):
        promote(NAME, register(write_outputs(root, seed=seed), root).version, Gates(), root)
    rollback(NAME, "worse on antibodies", root)
    for version in (1, 2):
        events = [event["kind"] for event in lineage(f"models:/{NAME}/{version}", root)["history"]]
        assert events[-1] == "rollback"
    assert "rolled back from version 2 to 1: worse on antibodies" in "\n".join(tree(lineage(NAME, root)))


def test_the_drawing_leads_from_the_data_to_the_version(full: Evidence, root: Path, tmp_path: Path) -> None:
    found = lineage(NAME, root)
    assert columns(found)[:4] == [["raw", "code", "runs"], ["sequences", "plm"], ["activations"], ["sae"]]
    assert columns(found)[-1] == ["version"]
    chain = {("plm", "activations"), ("sequences", "activations"), ("activations", "sae")}
    ends = {arrow for name in full.evaluations for arrow in (("sae", name), (name, "version"))}
    assert set(edges(found)) == chain | ends
    del found["stages"]["sae"]
    assert {("activations", "fidelity"), ("fidelity", "version")} <= set(edges(found))
    assert main(["lineage", NAME, "--figure", str(tmp_path / "one.png")]) == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_verb(
    full: Evidence, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> tuple[int, Any]:
        code = main(["lineage", *arguments, "--json"])
        return code, json.loads(capsys.readouterr().out)

    assert run(NAME) == (0, lineage(NAME, root))
    monkeypatch.setenv("KFP_HOST", "https://kubeflow.example.org")
    _, found = run(NAME)
    assert found["runs"]["kfp_run_url"] == f"https://kubeflow.example.org/#/runs/details/{RUN}"
    for arguments, message in {
        (): "name either a model or --of HASH",
        (NAME, "--of", DATA): "name either a model or --of HASH",
        ("--of", "abc"): "'abc' could be anything",
        (NAME, "--figure", "x.pdf"): "PNG or SVG, not '.pdf'",
        (f"{NAME}k",): "no SAE is registered as",
        (f"models:/{NAME}@chamion",): "has no alias 'chamion'",
    }.items():
        code, answer = run(*arguments)
        assert (code, message in answer["error"]) == (2, True), answer
    assert not Path("x.pdf").exists()


def test_a_name_without_aliases_asks_for_a_version(root: Path) -> None:
    register(write_outputs(root), root)
    with connect(root) as client:
        client.delete_registered_model_alias(NAME, "candidate")
    with pytest.raises(UserError, match="neither a champion nor a candidate"):
        lineage(NAME, root)


GUIDES = Path(__file__).parents[2] / "docs" / "how-to"


def documented(guide: str) -> list[list[str]]:
    """Arguments of every `plmsae ...` line in the code blocks of a guide."""
    lines = (GUIDES / f"{guide}.md").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("    plmsae ")]


def test_the_commands_of_the_guide_work(full: Evidence, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register(write_outputs(root, seed=1, data=DATA), root)
    register(write_outputs(root, seed=2, data=DATA), root)
    commands = documented("lineage")
    assert len(commands) == 5
    for arguments in commands:
        real = [part.replace("NAME", NAME).replace(f"sha256:{'DIGEST'}", DIGEST) for part in arguments]
        assert main(real) == 0, arguments
        assert NAME in capsys.readouterr().out
    assert (root / "lineage.svg").is_file()


def test_the_commands_of_the_registry_guide_are_understood() -> None:
    commands = documented("registry")
    assert {arguments[0] for arguments in commands} >= {"models", "pull", "verify", "promote", "rollback", "lineage"}
    for arguments in commands:
        build_parser(arguments[0]).parse_args(arguments)
