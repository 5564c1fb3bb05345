"""The finished image: runs locked down, as nobody in particular, and holds nothing that it does not need."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tests.containers.marks import CONTAINERS
from tests.containers.podman import LOCKED_DOWN, Podman
from tests.workspace import FIXTURE, ROOT

pytestmark = CONTAINERS

# Run inside: what could be found out about the machine that built the image, outside of the base's own files.
LOOK_FOR = """
import os, pathlib, sys
needles = [text.encode() for text in sys.argv[1:]]
for top in ("/opt", "/etc", "/usr/local", "/workspace", "/root", "/home"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = pathlib.Path(folder, name)
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            data = path.read_bytes()
            for needle in needles:
                if needle in data:
                    print(path, needle.decode())
"""


def test_doctor_is_content_where_nothing_can_be_written(podman: Podman, image: str) -> None:
    answer = json.loads(podman.run(image, "plmsae", "doctor", "--json"))
    assert answer["ok"], answer
    status = {check["name"]: check["status"] for check in answer["checks"]}
    assert set(status.values()) == {"ok"}, answer
    assert {"torch", "torchvision", "mmseqs", "bundled PLM", "registry"} <= set(status)


def test_the_root_cannot_be_written_and_the_user_is_nobody(podman: Podman, image: str) -> None:
    assert podman.run(image, "id", "-u", options=("--read-only",)).strip() == "10001"
    told = podman.run(image, "sh", "-c", "touch /opt/plmsae/x /workspace/x; touch /tmp/x && echo tmp", check=False)
    assert told.count("Read-only file system") == 2
    assert "tmp" in told.splitlines()
    config = json.loads(podman("image", "inspect", image).stdout)[0]["Config"]
    assert config["User"] == "10001:10001", "Kubernetes checks runAsNonRoot against a number only"
    assert not config.get("Entrypoint")


def test_an_unknown_user_id_works_as_well(podman: Podman, image: str) -> None:
    options = ("--read-only", "--cap-drop", "ALL", "--user", "54321:54321")
    assert "all is well" in podman.run(image, "plmsae", "doctor", options=options)


def test_no_tools_of_a_build_are_left(podman: Podman, image: str) -> None:
    script = "for tool in pip pip3 gcc cc g++ make git curl wget ld as; do command -v $tool; done; true"
    assert podman.run(image, "sh", "-c", script) == ""
    for module in ("pip", "ensurepip", "kfp", "dvc", "pytest", "moto", "mypy", "torchvision"):
        told = podman.run(image, "python", "-c", f"import {module}", check=False)
        assert f"No module named '{module}'" in told


def test_no_program_changes_the_user(podman: Podman, image: str) -> None:
    search = "touch /tmp/one && chmod u+s /tmp/one; find / /tmp -xdev -type f -perm /6000"
    assert set(podman.run(image, "sh", "-c", search, options=("--user", "0", "--tmpfs", "/tmp")).split()) == {
        "/tmp/one"
    }


def test_byte_code_is_there_and_valid_although_it_cannot_be_written(podman: Podman, image: str) -> None:
    script = "import plmsae.cli, numpy, mlflow; print([m.__cached__ for m in (plmsae.cli, numpy, mlflow)])"
    cached = podman.run(image, "python", "-c", f"{script}; import os; assert os.path.exists(plmsae.cli.__cached__)")
    assert cached.count("__pycache__") == 3
    assert "matches" in podman.run(image, "python", "-v", "-c", "import plmsae.cli", check=False)


def test_nothing_of_the_machine_that_built_it_is_inside(podman: Podman, image: str) -> None:
    home = str(Path.home())
    needles = [str(ROOT), "/dev/pip", *([home] if len(home) > 6 else [])]
    assert podman.run(image, "python", "-c", LOOK_FOR, *needles) == ""
    assert (
        podman.run(image, "sh", "-c", "ls /opt; ls -A /workspace; ls /etc/pip.conf /build 2>/dev/null; true")
        == "plmsae\n"
    )
    settings = json.loads(inspected := podman("image", "inspect", image).stdout)[0]["Config"]["Env"]
    assert not [
        name for name in settings if any(word in name.upper() for word in ("SECRET", "PASSWORD", "TOKEN", "AWS_"))
    ]
    history = podman("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    for needle in (str(ROOT), "/dev/pip", "find-links", "extra-index"):
        assert needle not in history + inspected


def test_labels_name_the_commit_and_the_base(podman: Podman, image: str) -> None:
    labels = json.loads(podman("image", "inspect", image).stdout)[0]["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "@sha256:" in labels["org.opencontainers.image.base.name"]
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) in (40, len("unknown"))


def test_the_versions_are_those_of_the_lock(podman: Podman, image: str) -> None:
    script = "import importlib.metadata as m; print('\\n'.join(f'{d.name}=={d.version}' for d in m.distributions()))"
    installed = {
        line.partition("+")[0].lower().replace("_", "-").replace(".", "-")
        for line in podman.run(image, "python", "-c", script).split()
    }
    wanted = [line for line in (ROOT / "docker" / "requirements.txt").read_text().splitlines() if "==" in line]
    wanted = [line.lower().replace("_", "-").replace(".", "-") for line in wanted]
    assert installed - {"plmsae==0-1-0"} == set(wanted)


def test_a_task_runs_with_a_read_only_root(podman: Podman, image: str, tmp_path: Path, open_umask: None) -> None:
    folder = tmp_path / "task"
    folder.mkdir()
    shutil.copy(FIXTURE, folder / "proteins.tsv.gz")
    sha256 = hashlib.sha256(FIXTURE.read_bytes()).hexdigest()
    task = _executor_input("/task", source="/task/proteins.tsv.gz", source_sha256=sha256, seed=0.0)
    command = ["plmsae", "run", "ingest", "--executor-input", json.dumps(task)]
    podman.run(image, *command, options=(*LOCKED_DOWN, "--volume", f"{folder}:/task"))
    manifest = json.loads((folder / "out" / "output" / "manifest.json").read_text())
    assert manifest["stage"] == "ingest"
    given = json.loads((folder / "executor_output.json").read_text())
    assert given["artifacts"]["metrics"]["artifacts"][0]["metadata"]["num_proteins"] > 50
    assert not list((folder / "out").glob(".*"))

    wrong = _executor_input("/task", source="/task/proteins.tsv.gz", source_sha256=64 * "0", seed=0)
    command[-1] = json.dumps(wrong)
    told = podman(
        "run", "--rm", "--network", "none", *LOCKED_DOWN, "--volume", f"{folder}:/task", image, *command, check=False
    )
    assert told.returncode == 3
    assert "Traceback" not in told.stderr
    assert sha256 in told.stderr


def _executor_input(folder: str, **parameters: object) -> dict[str, object]:
    """What KFP passes to the `ingest` task."""
    names = {"output": "system.Dataset", "metrics": "system.Metrics", "summary": "system.Markdown"}
    artifacts = {
        name: {
            "artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": f"{folder}/out/{name}", "metadata": {}}]
        }
        for name, kind in names.items()
    }
    return {
        "inputs": {"parameterValues": {**parameters, "params": "{}"}},
        "outputs": {
            "artifacts": artifacts,
            "parameters": {"manifest_sha256": {"outputFile": f"{folder}/out/manifest_sha256"}},
            "outputFile": f"{folder}/executor_output.json",
        },
    }


def test_the_task_shown_to_fail_without_its_folder(podman: Podman, image: str) -> None:
    told = podman.run(image, "plmsae", "run", "ingest", "--executor-input", "{}", check=False)
    assert "executor input" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("command", [["mlflow", "--version"], ["python", "-c", "import psycopg; import boto3"]])
def test_it_holds_what_an_mlflow_server_needs(podman: Podman, image: str, command: list[str]) -> None:
    podman.run(image, *command)
