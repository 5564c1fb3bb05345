"""A stand-in for the API server of a cluster with Kubeflow Trainer: real HTTP, and jobs that really run.

A TrainJob must fit the models of Trainer's API without a field too many, and the rules that its resource definition and
admission webhook add (trainjob_types.go, plugins/torch/torch.go and plugins/jobset/jobset.go of kubeflow/trainer 2.3).
Every node is a process of this machine with the variables that the operator gives it; what it writes is the pod's log.
If a node fails, all are killed and, as the runtime's failure policy says, started anew. Requests are allowed by the
Role in k8s/, and by nothing else. Paths are the same inside and outside: a claim is mounted where the task has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob

ROOT = Path(__file__).parents[2]
TRAINER = ROOT / "k8s" / "components" / "trainer"
NAMESPACE, ACCOUNT, TOKEN = "team", "system:serviceaccount:team:plmsae-runner", "token-of-the-pod"
GROUP = "trainer.kubeflow.org"
GRACE_SECONDS = 5.0


class RefusalError(Exception):
    """An answer other than 200, as the Status object of Kubernetes."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.body |= {"message": message, "reason": reason, "code": code}


@dataclass
class Fault:
    """What the server does in place of answering: a status and a body, or with status 0 it hangs up."""

    path: str
    status: int
    body: bytes = b""
    times: int = 10**9


def role_rules() -> set[tuple[str, str, str]]:
    """(group, resource, verb) of the Role in k8s/."""
    documents = list(yaml.safe_load_all((TRAINER / "accounts.yaml").read_text(encoding="utf-8")))
    (role,) = [item for item in documents if item["kind"] == "Role"]
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def runtime() -> dict[str, Any]:
    """The training runtime in k8s/."""
    found: dict[str, Any] = yaml.safe_load((TRAINER / "runtime.yaml").read_text(encoding="utf-8"))
    return found


def check_runtime(data: dict[str, Any]) -> None:
    """Refuse a runtime with a field that its definition does not know."""
    model = TrainerV1alpha1TrainingRuntime.from_dict(data)
    assert model is not None
    assert model.to_dict() == data


def check_train_job(job: dict[str, Any], runtimes: dict[str, dict[str, Any]]) -> None:
    """What a cluster would refuse.

    Raises:
        RefusalError: As the API server words it.
    """
    try:
        model = TrainerV1alpha1TrainJob.from_dict(job)
        assert model is not None
    except ValueError as error:
        raise RefusalError(422, "Invalid", f"TrainJob is invalid: {error}") from error
    if model.to_dict() != job:
        raise RefusalError(400, "BadRequest", "strict decoding error: unknown field in TrainJob")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"]):
        raise RefusalError(422, "Invalid", "metadata.name must match RFC 1035 DNS label format")
    spec, trainer = job["spec"], job["spec"]["trainer"]
    if spec.get("activeDeadlineSeconds", 1) < 1 or trainer["numNodes"] < 0 or trainer["numProcPerNode"] < 1:
        raise RefusalError(422, "Invalid", "spec: Invalid value: should be greater than or equal to 1")
    problems = []
    reference = spec["runtimeRef"]
    found = runtimes.get(reference["name"]) if reference.get("kind") == "TrainingRuntime" else None
    if found is None:
        problems.append(f'{reference["kind"]}.{GROUP} "{reference["name"]}" not found')
    if any(item["name"].startswith("PET_") for item in trainer.get("env", ())):
        problems.append("spec.trainer.env: Invalid value: must not have reserved envs")
    for patch in spec.get("runtimePatches", ()):
        if not re.fullmatch(r"[a-z0-9.-]+\.[a-z0-9.-]+/.+", patch["manager"]):
            problems.append("spec.runtimePatches.manager: must be a domain-prefixed path (such as acme.io/foo)")
        for item in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            jobs = found["spec"]["template"]["spec"]["replicatedJobs"] if found else []
            if item["name"] not in [known["name"] for known in jobs]:
                problems.append("must not have replicated job that doesn't exist in the runtime job template")
            for container in item["template"]["spec"]["template"]["spec"].get("containers", ()):
                if container["name"] != "node" or container.get("env"):
                    problems.append("must not have envs for, or containers other than, node")
    if problems:
        denied = f'admission webhook "validator.trainjob.{GROUP}" denied the request: {"; ".join(problems)}'
        raise RefusalError(403, "Forbidden", denied)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Node:
    """One pod: a process, and what it wrote with the time of each line."""

    def __init__(self, job: str, number: int, attempt: int, command: list[str], environment: dict[str, str]) -> None:
        self.name, self.job, self.number = f"{job}-node-0-{number}-{attempt}", job, number
        self.lines: list[tuple[int, str]] = []
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            cwd="/tmp",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time_ns(), line.rstrip("\n")))

    def kill(self, grace: float) -> None:
        """SIGTERM to the container, and SIGKILL to what is left."""
        with contextlib.suppress(ProcessLookupError):
            if grace and self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(grace)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(5)

    def manifest(self) -> dict[str, Any]:
        code = self.process.poll()
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        state: dict[str, Any] = {"running": {}}
        if code is not None:
            state = {"terminated": {"exitCode": code % 256, "reason": "Error" if code else "Completed"}}
        return {
            "metadata": {
                "name": self.name,
                "labels": {
                    "jobset.sigs.k8s.io/jobset-name": self.job,
                    "jobset.sigs.k8s.io/replicatedjob-name": "node",
                    "batch.kubernetes.io/job-completion-index": str(self.number),
                },
            },
            "status": {"phase": phase, "conditions": [], "containerStatuses": [{"name": "node", "state": state}]},
        }


@dataclass
class Cluster:
    """What the server holds, and how it is to behave."""

    host: str = ""
    allowed: set[tuple[str, str, str]] = field(default_factory=role_rules)
    runtimes: dict[str, dict[str, Any]] = field(default_factory=lambda: {"plmsae-torch": runtime()})
    values: dict[str, dict[str, str]] = field(default_factory=dict)  # settings map or secret -> its values
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # (group, resource, verb)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    nodes: dict[str, list[_Node]] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    restarts: int = 0
    hold: bool = False  # accept jobs and do not run them, as a cluster without room
    lock: threading.RLock = field(default_factory=threading.RLock)

    def configuration(self) -> Any:
        """What a client in a pod of the namespace has."""
        from kubernetes import client

        configuration = client.Configuration(host=self.host)
        configuration.api_key["authorization"] = f"bearer {TOKEN}"
        return configuration

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        check_train_job(job, self.runtimes)
        name = job["metadata"]["name"]
        with self.lock:
            if name in self.jobs:
                raise RefusalError(409, "AlreadyExists", f'trainjobs.{GROUP} "{name}" already exists')
            stored: dict[str, Any] = json.loads(json.dumps(job))
            stored["metadata"] |= {"uid": f"uid-{len(self.created)}", "creationTimestamp": "2026-01-01T00:00:00Z"}
            self.jobs[name] = stored
            self.created.append(name)
        if not self.hold:
            threading.Thread(target=self._run, args=(stored,), daemon=True).start()
        return stored

    def delete(self, name: str) -> dict[str, Any]:
        with self.lock:
            if name not in self.jobs:
                raise RefusalError(404, "NotFound", f'trainjobs.{GROUP} "{name}" not found')
            job = self.jobs[name]
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:01Z"

        def finish() -> None:
            self._end(name)
            with self.lock:
                self.jobs.pop(name, None)
                self.nodes.pop(name, None)

        threading.Thread(target=finish, daemon=True).start()
        return job

    def lose_node(self, name: str, number: int) -> None:
        """A node goes away without a word, as one of a spot pool does."""
        self.nodes[name][number].kill(0.0)

    def close(self) -> None:
        with self.lock:  # or what is killed would be started anew
            for job in self.jobs.values():
                job["metadata"].setdefault("deletionTimestamp", "now")
        for name in list(self.nodes):
            self._end(name, grace=0.0)

    def _end(self, name: str, grace: float = GRACE_SECONDS) -> None:
        threads = [threading.Thread(target=node.kill, args=(grace,)) for node in self.nodes.get(name, ())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, job: dict[str, Any]) -> None:
        name, spec = job["metadata"]["name"], job["spec"]
        policy = self.runtimes[spec["runtimeRef"]["name"]]["spec"]["template"]["spec"].get("failurePolicy", {})
        deadline = time.monotonic() + spec.get("activeDeadlineSeconds", 1e9)
        for attempt in range(policy.get("maxRestarts", 0) + 1):
            with self.lock:
                if "deletionTimestamp" in job["metadata"]:
                    return
                self.nodes[name] = self._start(name, spec["trainer"], attempt)
            codes: list[int | None] = [None]
            while None in codes and not any(codes):
                if "deletionTimestamp" in job["metadata"]:
                    return
                if time.monotonic() > deadline:
                    self._end(name, grace=0.0)
                    self.nodes[name] = []
                    self._condition(job, "Failed", "DeadlineExceeded", "TrainJob exceeded its deadline")
                    return
                time.sleep(0.02)
                codes = [node.process.poll() for node in self.nodes[name]]
            if not any(codes):
                self._condition(job, "Complete", "AllJobsCompleted", "jobset completed successfully")
                return
            if attempt < policy.get("maxRestarts", 0):
                self.restarts += 1
                self._end(name, grace=0.0)
        failed = next(number for number, code in enumerate(codes) if code)
        self._condition(job, "Failed", "ReachedMaxRestarts", f"jobset failed: first failed job: {name}-node-{failed}")
        time.sleep(0.5)
        self._end(name, grace=0.0)

    def _condition(self, job: dict[str, Any], kind: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        job["status"] = {"conditions": [condition | {"lastTransitionTime": "2026-01-01T00:00:02Z"}]}

    def _start(self, name: str, trainer: dict[str, Any], attempt: int) -> list[_Node]:
        port = str(free_port())
        given: dict[str, str] = {}
        for item in trainer.get("env", ()):
            source = item.get("valueFrom", {})
            reference = source.get("configMapKeyRef") or source.get("secretKeyRef")
            value = self.values.get(reference["name"], {}).get(reference["key"]) if reference else item["value"]
            if value is not None:
                given[item["name"]] = value
        base = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "HOME": "/tmp",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            **given,
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
        }
        command = [*trainer["command"], *trainer.get("args", ())]
        return [
            _Node(name, number, attempt, command, {**base, "PET_NODE_RANK": str(number)})
            for number in range(trainer["numNodes"])
        ]


@contextmanager
def trainer_server(tls: ssl.SSLContext | None = None) -> Iterator[Cluster]:
    """Serve on a free port of this machine until the block ends; then everything that runs is killed."""
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    cluster.host = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        cluster.close()


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_DELETE(self) -> None:
        self.do_POST()

    def _handle(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        for fault in self.cluster.faults:
            if fault.path in parts.path and fault.times > 0:
                fault.times -= 1
                if fault.status:
                    self._send(fault.status, fault.body, "text/plain")
                else:
                    self.close_connection = True
                return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        try:
            if self.headers.get("Authorization") != f"bearer {TOKEN}":
                raise RefusalError(401, "Unauthorized", "Unauthorized")
            answer = self._route(parts.path.strip("/").split("/"), query, body)
        except RefusalError as refusal:
            self._send(refusal.code, json.dumps(refusal.body).encode(), "application/json")
        else:
            text, kind = (answer, "text/plain") if isinstance(answer, str) else (json.dumps(answer), "application/json")
            self._send(200, text.encode(), kind)

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _may(self, group: str, resource: str, verb: str) -> None:
        self.cluster.requests.append((group, resource, verb))
        if (group, resource, verb) not in self.cluster.allowed:
            what = f"{resource}.{group}" if group else resource
            raise RefusalError(
                403,
                "Forbidden",
                f'{what} is forbidden: User "{ACCOUNT}" cannot {verb} resource "{resource}" in API group "{group}" '
                f'in the namespace "{NAMESPACE}"',
            )

    def _route(self, path: list[str], query: dict[str, str], body: bytes) -> Any:
        cluster = self.cluster
        match self.command, path:
            case "POST", ["apis", "trainer.kubeflow.org", "v1alpha1", "namespaces", "team", "trainjobs"]:
                self._may(GROUP, "trainjobs", "create")
                return cluster.create(json.loads(body))
            case "GET", ["apis", "trainer.kubeflow.org", "v1alpha1", "namespaces", "team", "trainjobs", name]:
                self._may(GROUP, "trainjobs", "get")
                with cluster.lock:
                    if name not in cluster.jobs:
                        raise RefusalError(404, "NotFound", f'trainjobs.{GROUP} "{name}" not found')
                    return cluster.jobs[name]
            case "DELETE", ["apis", "trainer.kubeflow.org", "v1alpha1", "namespaces", "team", "trainjobs", name]:
                self._may(GROUP, "trainjobs", "delete")
                assert json.loads(body)["propagationPolicy"] == "Foreground"
                return cluster.delete(name)
            case "GET", ["api", "v1", "namespaces", "team", "pods"]:
                self._may("", "pods", "list")
                wanted = dict(item.split("=") for item in query["labelSelector"].split(","))
                pods = [node.manifest() for nodes in list(cluster.nodes.values()) for node in nodes]
                pods = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
                return {"kind": "PodList", "apiVersion": "v1", "items": pods}
            case "GET", ["api", "v1", "namespaces", "team", "pods", pod, "log"]:
                self._may("", "pods/log", "get")
                return self._log(pod, query)
        raise RefusalError(404, "NotFound", "the server could not find the requested resource")

    def _log(self, pod: str, query: dict[str, str]) -> str:
        found = [node for nodes in list(self.cluster.nodes.values()) for node in nodes if node.name == pod]
        if not found:
            raise RefusalError(404, "NotFound", f'pods "{pod}" not found')
        assert query["container"] == "node"
        assert query["timestamps"] == "True"
        lines = list(found[0].lines)
        if "sinceSeconds" in query:
            begin = time.time_ns() - int(query["sinceSeconds"]) * 10**9
            lines = [line for line in lines if line[0] >= begin]
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :]
        return "".join(f"{_stamp(moment)} {text}\n" for moment, text in lines)


def _stamp(nanoseconds: int) -> str:
    """RFC 3339 as Go writes it: no trailing zeros in the fraction."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    digits = f"{fraction:09d}".rstrip("0")
    return f"{text}.{digits}Z" if digits else f"{text}Z"
