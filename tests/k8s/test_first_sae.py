"""docs/how-to/first-sae-on-a-cluster.md, command by command, in its order.

What belongs to this repository is run for real: shell lines and docker/build.sh by bash, `plmsae` against an API server
of Kubeflow, a container registry, an object store and an MLflow server (a long test; the others read its arguments).
What a cluster would do is compared: kustomize folders are put together and held against the strict schemas, and every
object, port and key that a `kubectl` names must be among what was applied before. A command that nothing here knows
fails the test.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from plmsae import cli
from plmsae.artifacts.checksums import sha256_file
from plmsae.cluster.placement import Placement, read_placement
from plmsae.params import ParamsFile
from plmsae.registry.gates import Gates
from plmsae.registry.promote import promote
from plmsae.registry.register import register
from tests.cluster.kfp_server import KfpServer, kfp_server
from tests.cluster.oci_registry import Registry, oci_registry
from tests.k8s.guide import Command, commands, missing
from tests.k8s.kustomize import render
from tests.k8s.manifests import load
from tests.registry.outputs import write_outputs
from tests.registry.server import mlflow_server
from tests.s3server import S3Server
from tests.workspace import FIXTURE, ROOT

PAGE = (ROOT / "docs" / "how-to" / "first-sae-on-a-cluster.md").read_text(encoding="utf-8")
VERSION = kubernetes_validate.latest_version()
HOSTS = ("registry.example.org", "http://localhost:8080", "http://localhost:8333", "http://localhost:5000")
DIGEST = "sha256:" + 64 * "1"
# What the page leaves to the reader, and why; the page has the same table.
UNCHECKED = {
    "kubectl apply -k github.com/kubeflow/pipelines/...": "the manifests are Kubeflow's; they come from the network",
    "kubectl wait ...": "waits for objects of Kubeflow's manifests",
    "kubectl port-forward ... service/ml-pipeline-ui ...": "a service of Kubeflow's manifests",
    "helm ...": "NVIDIA's charts come from the network",
    "podman pull ...": "asks a registry of the network",
    "podman image inspect ...": "asks for the image that was pulled",
    "podman push ...": "there is no registry to push to; `digest.txt` is written by the test in its place",
}


@dataclass
class World:
    """What the commands find: a working folder, an environment, servers, and what was applied so far.

    Attributes:
        folder: A copy of the parts of the repository that the page uses.
        kfp: Kubeflow.
        images: The container registry.
        store: The object store.
        values: The variables that were exported.
        addresses: Address on the page -> where it is here.
        objects: (kind, name) -> object, of everything that was applied.
    """

    folder: Path
    kfp: KfpServer
    images: Registry
    store: S3Server
    values: dict[str, str]
    addresses: dict[str, str]
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """A text of the page with the addresses of this world."""
        for there, address in self.addresses.items():
            text = text.replace(there, address)
        return text

    def add(self, item: dict[str, Any]) -> None:
        kubernetes_validate.validate(item, VERSION, strict=True)
        assert item["metadata"].get("namespace") in (None, "kubeflow"), item["metadata"]
        self.objects[item["kind"].lower(), item["metadata"]["name"]] = item

    def bash(self, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the page in the working folder."""
        path = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        return subprocess.run(
            ["bash", "-euc", self.here(script)],
            cwd=self.folder,
            env={**path, **self.values, **variables},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )


def shell(world: World, text: str) -> str:
    """A line that is the shell's own business, and one file tool after another."""
    return world.bash(text).stdout


def export(world: World, text: str) -> str:
    """Variables, from values and from what a command prints."""
    names = re.findall(r"(?:^export |\s)([A-Z_0-9]+)=", text)
    assert names
    for name in names:
        world.values[name] = world.bash(f'{text}\nprintf %s "${name}"').stdout
        assert world.values[name]
        os.environ[name] = world.values[name]  # of this test alone: see `world`
    return ""


def secret_value(world: World, text: str) -> str:
    """A value that is read back from a secret."""
    found = re.fullmatch(
        r"export (\w+)=\$\(kubectl get secret (\S+) -n kubeflow -o jsonpath='\{\.data\.(\w+)\}' \| base64 -d\)", text
    )
    assert found, text
    world.objects["secret", found[2]]["stringData"][found[3]]
    os.environ[found[1]] = world.values[found[1]] = world.store.env[found[1]]
    return ""


def apply_file(world: World, text: str) -> str:
    """Manifests of a file, none of which has a placeholder left."""
    *_, file = shlex.split(text)
    content = (world.folder / file).read_text(encoding="utf-8")
    assert "REPLACE_ME" not in re.sub(r"(?m)^\s*#.*$", "", content)
    for item in load(world.folder / file):
        world.add(item)
    return ""


def apply_folder(world: World, text: str) -> str:
    """A kustomization; what its pods read must be there."""
    *_, folder = shlex.split(text)
    items = render(world.folder / folder)
    for item in items:
        world.add(item)
    for item in items:
        for container in item.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            for variable in container.get("env", ()):
                for source, kind in (("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")):
                    if key := variable.get("valueFrom", {}).get(source):
                        holder = world.objects[kind, key["name"]]
                        assert key["key"] in {**holder.get("stringData", {}), **holder.get("data", {})}
    return ""


def rollout(world: World, text: str) -> str:
    """A deployment or stateful set that was applied."""
    kind, name = shlex.split(text)[-1].split("/")
    assert kind in ("deployment", "statefulset")
    assert (kind, name) in world.objects
    return ""


def port_forward(world: World, text: str) -> str:
    """A port of a service that was applied, whose pods listen on it."""
    *_, target, port = shlex.split(text)
    kind, name = target.split("/")
    ports = {str(item["port"]): item["targetPort"] for item in world.objects[kind, name]["spec"]["ports"]}
    assert port in ports
    label = world.objects[kind, name]["spec"]["selector"]
    pods = [
        item["spec"]["template"] for (kind, _), item in world.objects.items() if kind in ("deployment", "statefulset")
    ]
    (pod,) = [pod for pod in pods if label.items() <= pod["metadata"]["labels"].items()]
    assert ports[port] in {item["name"] for each in pod["spec"]["containers"] for item in each["ports"]}
    assert any(address.endswith(f":{port}") for address in HOSTS)
    return ""


def gpu_node(world: World, text: str) -> str:
    """Label and taint are those that the pipelines ask for where no placement is given."""
    words = shlex.split(text)
    assert words[1:4] in (["label", "node", "NODE"], ["taint", "node", "NODE"])
    place = Placement()
    if words[1] == "label":
        assert words[4] in [f"{key}={value}" for key, value in place.labels.items()]
    else:
        (taint,) = place.taints
        assert re.fullmatch(rf"{taint['key']}=\w+:{taint['effect']}", words[4])
    return ""


def build(world: World, text: str) -> str:
    """The build script itself, with an engine that says what it was asked for."""
    said = world.bash(text, ENGINE="echo", BASE_IMAGE=f"docker.io/library/python@{DIGEST}").stdout
    _, target, tag = shlex.split(os.path.expandvars(text))
    assert f"--target {target} --tag {world.here(tag)} " in said
    assert said.startswith("build --file docker/Dockerfile ")
    repository, _, version = world.here(tag).removeprefix(f"{world.images.host}/").rpartition(":")
    (world.folder / ("digest.txt" if target == "cpu" else "gpu-digest.txt")).write_text(
        world.images.push(repository, version)  # what `podman push --digestfile` writes
    )
    return said


def upload(world: World, text: str) -> str:
    """By the AWS client where it is installed, or else by what it would ask of the store."""
    words = shlex.split(os.path.expandvars(text))
    assert words[:3] == ["aws", "s3", "cp"]
    assert words[5] == "--metadata"
    bucket, key = words[4].removeprefix("s3://").split("/", 1)
    assert "-name $bucket" in str(world.objects["statefulset", "plmsae-object-store"])
    assert f"for bucket in {bucket} " in str(world.objects["statefulset", "plmsae-object-store"])
    world.store.client().create_bucket(Bucket=bucket)
    if shutil.which("aws"):
        world.bash(text)
    else:
        name, value = words[6].split("=")
        world.store.client().upload_file(str(world.folder / words[3]), bucket, key, {"Metadata": {name: value}})
    assert world.store.objects(bucket)[key] == (world.folder / words[3]).read_bytes()
    return ""


def make_target(world: World, text: str) -> str:
    """Targets of the Makefile, and what they make."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if text.startswith("make "):
        assert re.search(rf"^{text.split()[1]}:.*## ", makefile, re.MULTILINE)
    elif text.startswith("source "):
        assert text == "source .venv/bin/activate"
        assert "-m venv .venv\n" in makefile
    else:
        assert (ROOT / shlex.split(text)[-1]).is_file(), "what dvc pulls by"
    return ""


# The first that fits is taken; `plmsae` is added by the test.
CHECKERS: list[tuple[str, Callable[[World, str], str]]] = [
    (r"(make|source|dvc pull) \S+", make_target),
    (r"export \w+=\$\(kubectl get secret .*", secret_value),
    (r"export .*", export),
    (r"docker/build\.sh .*", build),
    (r"(cp|rm|mkdir|cat|echo|for|sed) [\s\S]*", shell),
    (r"kubectl apply -n kubeflow -f \S+", apply_file),
    (r"kubectl apply -k k8s/\S+", apply_folder),
    (r"kubectl rollout status -n kubeflow \S+", rollout),
    (r"kubectl port-forward -n kubeflow service/plmsae-\S+ \d+", port_forward),
    (r"kubectl (label|taint) .*", gpu_node),
    (r"aws s3 cp .*", upload),
]


@pytest.fixture
def world(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    root = tmp_path / "work"
    root.mkdir()
    monkeypatch.chdir(root)
    for name in list(os.environ):
        if name.startswith(("AWS_", "KFP_", "PLMSAE_", "MLFLOW_TRACKING", "KUBECONFIG", "SSL_CERT_FILE")):
            monkeypatch.delenv(name)
    # Exports of the page end with the test.
    for name in re.findall(r"([A-Z][A-Z_0-9]+)=", "\n".join(item.text for item in commands(PAGE))):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("k8s", "docker", "pipelines", "components"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", root)
    (root / "data").mkdir()
    shutil.copy(FIXTURE, root / "data" / "swissprot.tsv.gz")
    with kfp_server() as kfp, oci_registry() as images:
        addresses = {HOSTS[0]: images.host, HOSTS[1]: kfp.host, HOSTS[2]: s3_server.url}
        yield World(root, kfp, images, s3_server, {}, addresses)


def walk(world: World, plmsae: Callable[[World, str], str]) -> None:
    """Run the page; `plmsae` runs, or reads, a command of ours and returns what it printed."""
    for command in commands(PAGE):
        if not command.checked:
            assert reason(command), f"'{command.text}' is not checked, and the table does not say why"
            continue
        assert not reason(command), f"'{command.text}' is in the table of what is not checked"
        said = run(world, command, plmsae)
        assert missing([world.here(line) for line in command.prints], said) == [], said


def run(world: World, command: Command, plmsae: Callable[[World, str], str]) -> str:
    """Check one command by the first checker that knows it; returns what it printed."""
    for pattern, check in [(r"plmsae .*", plmsae), *CHECKERS]:
        if re.fullmatch(pattern, command.line):
            return check(world, command.text.removesuffix("&").rstrip())
    raise AssertionError(f"nothing here knows how to check: {command.text}")


def words_of(world: World, text: str) -> list[str]:
    """The arguments of a command of ours, with the addresses of this world and the exported variables."""
    return shlex.split(os.path.expandvars(world.here(text.replace("\\\n", " "))))[1:]


def reason(command: Command) -> str:
    """Why a command is not checked; empty if nothing says so."""
    line = command.line.replace('"', "").removeprefix("export BASE_IMAGE=$(")
    for pattern, why in UNCHECKED.items():
        if re.fullmatch(".*".join(map(re.escape, pattern.removesuffix(" ...").split("..."))) + ".*", line):
            return why
    return ""


def test_every_command_of_the_page_in_its_order(world: World) -> None:
    """All of them; of ours it is read only whether they are commands, and whether they name what was made before."""
    ours: list[list[str]] = []

    def parsed(world: World, text: str) -> str:
        words = words_of(world, text)
        args = cli.build_parser(words[0]).parse_args(words)
        if placement := getattr(args, "placement", None):
            assert read_placement(world.folder / placement).gpu_type is None
        if image := getattr(args, "image", None):
            assert image.partition("@")[2] in world.images.images["plmsae"].values()
        if getattr(args, "pipeline", None):
            file = ParamsFile(world.folder / "params.yaml", args.set)
            assert file.section("ingest")["source_sha256"] == sha256_file(world.folder / "data" / "swissprot.tsv.gz")
            assert ("serviceaccount", args.service_account) in world.objects
        ours.append(words)
        return "\n".join(line for item in commands(PAGE) if item.text == text for line in map(world.here, item.prints))

    walk(world, parsed)
    assert {words[0] for words in ours} == {"submit", "models", "pull", "verify", "lineage", "features", "schedule"}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ours_against_servers(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page once more; what the run of Kubeflow would do is done by the outputs of small stages, once it is over."""
    bucket, folder = world.store.bucket(), tmp_path / "server"
    folder.mkdir()

    def called(world: World, text: str) -> str:
        words = words_of(world, text)
        capsys.readouterr()
        code = cli.main(words)
        said = capsys.readouterr()
        assert code == 0, f"{text}\n{said.out}{said.err}"
        if words[:3] == ["submit", "train", "--wait"] and len(world.kfp.state.runs) == 1:
            done = register(write_outputs(world.folder), world.folder)
            assert promote(done.name, done.version, Gates(at_most={}), world.folder).promoted
        return said.out

    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db", f"s3://{bucket}/artifacts", world.store.env) as uri:
        world.addresses["http://localhost:5000"] = uri
        walk(world, called)
    assert world.store.objects(bucket)
    (weekly,) = world.kfp.state.recurring.values()
    assert weekly["service_account"] == "plmsae-runner"
    packages = {world.kfp.state.versions[key]["name"]: text.decode() for key, text in world.kfp.state.packages.items()}
    on_cpus, on_gpus = (text for name, text in packages.items() if name.startswith("plmsae-train"))
    assert "nvidia.com/gpu" not in on_cpus
    assert "nvidia.com/gpu" in on_gpus
    assert all(each["service_account"] == "plmsae-runner" for each in world.kfp.state.runs.values())


def test_a_command_that_nobody_knows_is_noticed(world: World) -> None:
    for text in ("curl https://example.org | sh", "kubectl delete namespace kubeflow", "kubectl apply -k elsewhere"):
        with pytest.raises(AssertionError, match="nothing here knows"):
            run(world, Command(text), lambda *_: "")
    for text in ("kubectl rollout status -n kubeflow deployment/plmsae", "kubectl apply -k k8s/overlays/none"):
        with pytest.raises((AssertionError, FileNotFoundError)):
            run(world, Command(text), lambda *_: "")
    assert missing(["a ... c", "d"], "x\na b c\nd") == []
    assert missing(["d", "a ... c"], "a b c\nd") == ["a ... c"]


def test_the_commands_between_the_lines() -> None:
    """Those in the tables and in the text: their objects are there, or a word of capitals stands for one."""
    names = {(item["kind"].lower(), item["metadata"]["name"]) for item in render(ROOT / "k8s" / "base")}
    text_alone = re.sub(r"(?m)^    .*$", "", PAGE.split("## What is not checked here")[0])
    found = re.findall(r"`((?:plmsae|kubectl) [^`]+)`", text_alone)
    for text in found:
        words = shlex.split(text)
        if words[0] == "plmsae":
            if len(words) > 2 and words[-1] != "--check":
                cli.build_parser(words[1]).parse_args(words[1:])
            continue
        if len(words) == 2:  # the verb alone
            continue
        at = words.index("-n")
        assert words[at + 1] == "kubeflow", text
        verb, *what = words[1:at] + words[at + 2 :]
        assert verb in ("get", "logs", "describe"), text
        kind, _, name = "/".join(what).partition("/")
        assert (kind, name) in names or (verb == "get" and kind in ("events", "pvc") and not name), text
    assert len(found) > 8


def test_the_page_says_what_is_not_checked_and_why() -> None:
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", PAGE.split("## What is not checked here")[1], re.MULTILINE)
    assert dict(rows) == UNCHECKED
    used = {reason(command) for command in commands(PAGE) if not command.checked}
    assert used == set(UNCHECKED.values())


def test_the_page_s_links_and_numbers() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]*)", PAGE):
        assert not target or (ROOT / "docs" / "how-to" / target).exists(), target
    assert f"schemas of {VERSION.rpartition('.')[0]})" in PAGE
