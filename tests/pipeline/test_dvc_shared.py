"""DVC for several people: outputs that one of them computed come from a bucket to another, who computes nothing."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.conftest import Finished
from tests.s3server import S3Server, start
from tests.workspace import call, environment, output_bytes

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Team:
    """A git remote and a bucket, both with everything of a finished run."""

    author: Path
    git: Path
    bucket: str
    server: S3Server

    def run(self, root: Path, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command of somebody with the keys of the bucket, or with other `variables`."""
        done = subprocess.run(
            command,
            cwd=root,
            env={**environment(root), **self.server.env, **variables},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert not check or not done.returncode, done.stdout + done.stderr
        return done

    def clone(self, root: Path) -> Path:
        """What a colleague has after `git clone`."""
        call(self.author, "git", "clone", "--quiet", str(self.git), str(root))
        (root / ".home").mkdir()
        return root


@pytest.fixture(scope="module")
def team(finished: Finished, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """The lines of docs/how-to/dvc.md that publish a run."""
    folder = tmp_path_factory.mktemp("team")
    author = finished.copy_to(folder / "author")
    ignored = (author / ".gitignore").read_text().replace("/src/\n", "")
    (author / ".gitignore").write_text(ignored)  # the code, too, as in the repository itself
    found = Team(author, folder / "remote.git", s3_server.bucket(), s3_server)
    call(author, "dvc", "remote", "add", "-d", "team", f"s3://{found.bucket}/dvc")
    call(author, "git", "add", "--all")
    call(author, "git", "commit", "--quiet", "--message", "share")
    found.run(author, "dvc", "push")
    call(author, "git", "init", "--quiet", "--bare", str(found.git))
    call(author, "git", "remote", "add", "origin", str(found.git))
    call(author, "git", "push", "--quiet", "origin", "HEAD")
    return found


def test_a_clone_pulls_what_others_computed_and_computes_nothing(team: Team, tmp_path: Path) -> None:
    root = team.clone(tmp_path / "clone")
    assert not (root / "outputs").exists()
    denied = team.run(root, "dvc", "pull", check=False, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert denied.returncode == 1
    assert "Unable to locate credentials" in denied.stderr
    assert "Traceback" not in denied.stderr
    with start(enforced=True) as strict:
        strict.enforce()
        denied = team.run(root, "dvc", "pull", check=False, AWS_ENDPOINT_URL=strict.url, AWS_ACCESS_KEY_ID="AKIAWRONG")
    assert denied.returncode == 1
    assert "Forbidden" in denied.stderr
    assert team.server.secret_key not in denied.stdout + denied.stderr

    team.run(root, "dvc", "pull")
    assert output_bytes(root) == output_bytes(team.author)
    assert (root / "data" / "swissprot.tsv.gz").read_bytes() == (team.author / "data/swissprot.tsv.gz").read_bytes()
    repro = team.run(root, "dvc", "repro").stdout
    assert "Data and pipelines are up to date." in repro
    assert "Running" not in repro
    verified = json.loads(team.run(root, "plmsae", "verify", "outputs", "--json").stdout)
    assert {item["stage"] for item in verified} >= {"ingest", "extract_activations", "train_sae", "register"}
    assert not call(root, "git", "status", "--porcelain").stdout


def test_what_the_bucket_lost_is_named_and_computed_again_alone(team: Team, tmp_path: Path) -> None:
    root = team.clone(tmp_path / "clone")
    (out,) = yaml.safe_load((root / "dvc.lock").read_text())["stages"]["steer"]["outs"]
    prefix, digest = "dvc/files/md5", out["md5"]
    client = team.server.client()
    listed = client.get_object(Bucket=team.bucket, Key=f"{prefix}/{digest[:2]}/{digest[2:]}")["Body"].read()
    lost = next(entry["md5"] for entry in json.loads(listed) if entry["relpath"] == "amino_acids.csv")
    key = f"{prefix}/{lost[:2]}/{lost[2:]}"
    client.delete_object(Bucket=team.bucket, Key=key)

    pulled = team.run(root, "dvc", "pull", check=False)
    assert pulled.returncode == 1
    assert lost in pulled.stderr
    assert "Traceback" not in pulled.stderr
    assert "outputs/steer/amino_acids.csv" in team.run(root, "dvc", "status", "--cloud").stdout
    team.run(root, "dvc", "pull", "data.dvc")
    repro = team.run(root, "dvc", "repro").stdout
    ran = {line.split("'")[1] for line in repro.splitlines() if line.startswith("Running stage")}
    assert ran == {"steer", "register", "promote"}  # registry stages are never restored (docs/adr/0003)
    assert output_bytes(root)["steer/amino_acids.csv"] == output_bytes(team.author)["steer/amino_acids.csv"]
    (model,) = json.loads(call(root, "plmsae", "models", "--json").stdout)
    assert "champion" in model["aliases"]

    # DVC takes a folder's listing for a sign that its files are there; without it they are pushed again.
    client.delete_object(Bucket=team.bucket, Key=f"{prefix}/{digest[:2]}/{digest[2:]}")
    team.run(root, "dvc", "push")
    assert client.get_object(Bucket=team.bucket, Key=key)["Body"].read() == output_bytes(root)["steer/amino_acids.csv"]


def test_activations_in_a_bucket_are_checked_there_and_not_pulled(team: Team, tmp_path: Path) -> None:
    author = team.clone(tmp_path / "author")
    store = f"extract_activations.store=s3://{team.bucket}/stores"
    team.run(author, "dvc", "pull")
    team.run(author, "dvc", "exp", "run", "--name", "in-bucket", "--set-param", store, "train_sae")
    team.run(author, "git", "commit", "--quiet", "--all", "--message", "in a bucket")
    team.run(author, "dvc", "push", "extract_activations", "train_sae")
    team.run(author, "git", "push", "--quiet", "origin", "HEAD:refs/heads/in-bucket")

    root = tmp_path / "clone"
    call(team.author, "git", "clone", "--quiet", "--branch", "in-bucket", str(team.git), str(root))
    (root / ".home").mkdir()
    team.run(root, "dvc", "pull", "extract_activations", "train_sae")
    output = root / "outputs" / "extract_activations"
    assert not list(output.rglob("*.bin"))
    assert (root / "outputs/train_sae/sae/sae.safetensors").read_bytes() == (
        team.author / "outputs/train_sae/sae/sae.safetensors"
    ).read_bytes()  # where the activations lie changes no SAE
    (verified,) = json.loads(
        team.run(root, "plmsae", "verify", "outputs/extract_activations", "--contents", "--json").stdout
    )
    assert verified["bucket"].startswith(f"s3://{team.bucket}/stores/")
    chunks = [key for key in team.server.objects(team.bucket) if key.startswith("stores/") and key.endswith(".bin")]
    assert verified["chunks"] == len(chunks) > 0
    team.server.client().delete_object(Bucket=team.bucket, Key=chunks[0])
    damaged = team.run(root, "plmsae", "verify", "outputs/extract_activations", check=False)
    assert damaged.returncode == 3
    assert chunks[0].rpartition("/")[2] in damaged.stderr


def test_queued_experiments_share_the_registry_and_travel_by_git_and_bucket(team: Team, tmp_path: Path) -> None:
    author = team.clone(tmp_path / "author")
    team.run(author, "dvc", "pull")
    for name, rate in (("low", 0.001), ("high", 0.004)):
        team.run(author, "dvc", "exp", "run", "--queue", "-n", name, "-S", f"train_sae.learning_rate={rate}")
    team.run(author, "dvc", "exp", "run", "--run-all", "-j", "2")
    models = json.loads(call(author, "plmsae", "models", "--json").stdout)
    assert [model["version"] for model in models] == [1, 2]  # one registry, and not one per copy of the working folder
    assert not call(author, "git", "status", "--porcelain").stdout

    keep = r"(train_sae\.learning_rate|train_sae/metrics\.json:fvu)$"
    table = json.loads(team.run(author, "dvc", "exp", "show", "--json").stdout)
    assert {"low", "high"} <= {exp["name"] for rev in table for exp in rev["experiments"] or ()}
    csv = team.run(author, "dvc", "exp", "show", "--csv", "--drop", ".*", "--keep", keep).stdout
    assert {"0.001", "0.004"} <= set(re.split(r"[,\n]", csv))

    team.run(author, "dvc", "plots", "diff", "HEAD", "low", "high", "--out", "compared")
    specs = vega_specs(author / "compared" / "index.html")
    assert len(specs) == 9
    for title, spec in specs.items():
        assert {row["rev"] for row in spec["data"]["values"]} == {"HEAD", "low", "high"}, title
    (bars, amino_acids) = (specs[title] for title in specs if specs[title]["encoding"]["x"]["type"] == "nominal")
    assert {row["hidden_state"] for row in bars["data"]["values"]} >= {"clean", "sae", "zero"}
    assert len({row["amino_acid"] for row in amino_acids["data"]["values"]}) == 20

    team.run(author, "dvc", "exp", "push", "origin", "low")
    root = team.clone(tmp_path / "colleague")
    team.run(root, "dvc", "exp", "pull", "origin", "low")
    team.run(root, "dvc", "exp", "apply", "low")
    assert yaml.safe_load((root / "params.yaml").read_text())["train_sae"]["learning_rate"] == 0.001
    assert "Running" not in team.run(root, "dvc", "repro").stdout
    verified = json.loads(team.run(root, "plmsae", "verify", "outputs", "--json").stdout)
    assert "train_sae" in {item["stage"] for item in verified}
    team.run(root, "dvc", "exp", "branch", "low", "low-rate")
    assert "low-rate" in call(root, "git", "branch", "--list", "low-rate").stdout


def vega_specs(page: Path) -> dict[str, dict[str, Any]]:
    """Title -> specification of every plot of a page of `dvc plots`."""
    found = [json.loads(text) for text in re.findall(r"var spec = (\{.*?\});\n", page.read_text(), re.DOTALL)]
    return {spec["title"]["text"]: spec for spec in found}
