"""A stand-in for the API server of Kubeflow Pipelines: real HTTP, and the checks of the real one.

The answers and refusals follow backend/src/apiserver of kubeflow/pipelines (pipeline_server.go,
pipeline_upload_server.go, run_server.go, job_server.go, the converter of a Job, template/v2_template.go): what is
uploaded must parse as a PipelineSpec, the parameters of a run must have the declared types, none may be missing and
none too many; a recurring run needs a name, which several may share, times that can be read, and 1 to 10 runs at once.
It runs nothing: a test scripts how a run goes on.
"""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import itertools
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

API = "/apis/v2beta1"
HTML = b"<!doctype html><html><body>Sign in</body></html>"


class RefusalError(Exception):
    """An answer other than 200: status, and the text in the form of the gateway or of the upload handlers."""

    def __init__(self, status: int, text: str, *, upload: bool = False) -> None:
        super().__init__(text)
        self.status = status
        code = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}[status]
        self.body = (
            {"error_message": text, "error_details": text}
            if upload
            else {"error": text, "code": code, "message": text, "details": []}
        )


@dataclass
class Fault:
    """What the server does in place of answering requests whose path contains `path`.

    So many as `spared` are answered before. With `after` the server does what is asked, and only the answer is lost.
    """

    path: str
    status: int
    body: bytes = HTML
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/html"})
    times: int = 10**9
    methods: tuple[str, ...] = ("GET", "POST", "DELETE")
    spared: int = 0
    after: bool = False


@dataclass
class State:
    """What the server holds, and how it is to behave."""

    token: str | None = None
    multi_user: bool = False
    faults: list[Fault] = field(default_factory=list)
    # Each look at a run takes the next (state, task -> (state, message)); the last one stays.
    course: list[tuple[str, dict[str, tuple[str, str]]]] = field(default_factory=lambda: [("SUCCEEDED", {})])
    requests: list[tuple[str, str]] = field(default_factory=list)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    # After every request that may write: name -> how many recurring runs of it are enabled.
    enabled: list[dict[str, int]] = field(default_factory=list)
    # Called with method, path and Authorization before a request is answered, so that somebody else can act just there.
    before: Callable[[str, str, str], None] = lambda *_: None
    max_page_size: int = 200
    looks: dict[str, int] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_id(self, text: str) -> str:
        name = hashlib.sha256(f"{text}{next(self.counter)}".encode()).hexdigest()
        return f"{name[:8]}-{name[8:12]}-{name[12:16]}-{name[16:20]}-{name[20:32]}"


@dataclass
class KfpServer:
    """A running server: its address and its state."""

    host: str
    state: State


@contextmanager
def kfp_server(tls: ssl.SSLContext | None = None) -> Iterator[KfpServer]:
    """Serve on a free port of this machine until the block ends, with TLS if a context is given."""
    state = State()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield KfpServer(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}", state)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"
    # One packet per answer: with two, each answer waits for a delayed acknowledgement.
    wbufsize = 1 << 16

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def do_DELETE(self) -> None:
        self._handle(b"")

    def _handle(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        self.state.requests.append((self.command, parts.path))
        self.state.before(self.command, parts.path, self.headers.get("Authorization", ""))
        lost = None
        for fault in self.state.faults:
            if fault.path in parts.path and self.command in fault.methods and fault.times > 0:
                if fault.spared > 0:
                    fault.spared -= 1
                    continue
                fault.times -= 1
                if not fault.after:
                    return self._send(fault.status, fault.body, fault.headers)
                lost = fault
        try:
            if self.state.token and self.headers.get("Authorization") != f"Bearer {self.state.token}":
                raise RefusalError(401, "Request header error: there is no user identity header.")
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            answer = self._route(parts.path.removeprefix(API), query, body)
        except RefusalError as refusal:
            return self._send(refusal.status, json.dumps(refusal.body).encode(), {"Content-Type": "application/json"})
        if self.command != "GET":
            on = Counter(
                item.get("display_name") for item in self.state.recurring.values() if item.get("mode") == "ENABLE"
            )
            self.state.enabled.append(dict(on))
        if lost:
            return self._send(lost.status, lost.body, lost.headers)
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _route(self, path: str, query: dict[str, str], body: bytes) -> Any:
        state = self.state
        match self.command, path.strip("/").split("/"):
            case "GET", ["healthz"]:
                return {"multi_user": state.multi_user}
            case "GET", ["experiments"]:
                return self._listed("experiments", state.experiments, query, query.get("namespace"))
            case "POST", ["experiments"]:
                return self._create("experiment", state.experiments, json.loads(body))
            case "GET", ["pipelines"]:
                return self._listed("pipelines", state.pipelines, query, query.get("namespace"))
            case "POST", ["pipelines"]:
                return self._create("pipeline", state.pipelines, json.loads(body))
            case "GET", ["pipelines", pipeline_id, "versions"]:
                versions = {key: item for key, item in state.versions.items() if item["pipeline_id"] == pipeline_id}
                return self._listed("pipeline_versions", versions, query, "any")
            case "POST", ["pipelines", "upload_version"]:
                return self._upload(query, body)
            case "POST", ["runs"]:
                return self._run(json.loads(body))
            case "GET", ["runs"]:
                newest = dict(reversed(state.runs.items())) if query.get("sort_by") == "created_at desc" else state.runs
                return self._listed("runs", newest, query, query.get("namespace"))
            case "GET", ["runs", run_id]:
                return self._look(run_id)
            case "GET", ["recurringruns"]:
                return self._listed("recurringRuns", state.recurring, query, query.get("namespace"))
            case "POST", ["recurringruns"]:
                return self._create_recurring(json.loads(body))
            case "POST", ["recurringruns", target] if target.endswith((":enable", ":disable")):
                recurring_run_id, _, verb = target.partition(":")
                item = self._recurring(recurring_run_id)
                item |= {"mode": verb.upper(), "status": f"{verb.upper()}D"}
                return {}
            case "DELETE", ["recurringruns", recurring_run_id]:
                self._recurring(recurring_run_id)
                del state.recurring[recurring_run_id]
                if query.get("propagation_policy") != "ORPHAN":
                    for run in state.runs.values():
                        if run.get("recurring_run_id") == recurring_run_id:
                            run["state"] = "CANCELED"
                return {}
        raise RefusalError(404, "Not Found")

    def _need_namespace(self, namespace: str | None) -> None:
        if self.state.multi_user and not namespace:
            raise RefusalError(400, "Invalid input error: Namespace is required in multi-user mode")

    def _listed(self, name: str, items: dict[str, Any], query: dict[str, str], namespace: str | None) -> Any:
        self._need_namespace(namespace)
        found = list(items.values())
        if query.get("filter"):
            for predicate in json.loads(query["filter"])["predicates"]:
                assert predicate["operation"] == 1
                found = [item for item in found if item.get(predicate["key"]) == predicate["stringValue"]]
        # A token goes with the filter of the page before.
        begin, _, filtered = query.get("page_token", "0:" + query.get("filter", "")).partition(":")
        if filtered != query.get("filter", ""):
            raise RefusalError(400, "Invalid input error: page token does not match the supplied filtering criteria")
        end = int(begin) + min(int(query.get("page_size", 0)) or 20, self.state.max_page_size)
        more = {"next_page_token": f"{end}:{filtered}"} if end < len(found) else {}
        # The gateway leaves an empty list out.
        return {name: found[int(begin) : end], "total_size": len(found), **more} if found else {}

    def _create(self, kind: str, items: dict[str, Any], given: dict[str, Any]) -> Any:
        self._need_namespace(given.get("namespace"))
        if not given.get("display_name"):
            raise RefusalError(400, "Invalid input error: name is required")
        if any(item["display_name"] == given["display_name"] for item in items.values()):
            raise RefusalError(409, f"Already exist error: {kind} {given['display_name']} already exists")
        item = {**given, f"{kind}_id": self.state.new_id(kind), "created_at": "2026-01-01T00:00:00Z"}
        items[item[f"{kind}_id"]] = item
        return item

    def _upload(self, query: dict[str, str], body: bytes) -> Any:
        header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(header + body)
        part = next(message.iter_parts())
        assert part.get_param("name", header="content-disposition") == "uploadfile"
        # The email parser takes a line end off the last part; the bytes are cut out of the body instead.
        boundary = b"--" + message.get_boundary().encode()
        text = body.split(boundary)[1].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        pipeline_id = query.get("pipelineid", "")
        if pipeline_id not in self.state.pipelines:
            raise RefusalError(400, "Failed to create a pipeline version", upload=True)
        _parse(text)
        name = query.get("name") or part.get_filename()
        if any(
            item["pipeline_id"] == pipeline_id and item["display_name"] == name for item in self.state.versions.values()
        ):
            raise RefusalError(409, "Failed to create a pipeline version", upload=True)
        version_id = self.state.new_id("version")
        self.state.packages[version_id] = text
        version = {"pipeline_id": pipeline_id, "pipeline_version_id": version_id, "display_name": name, "name": name}
        self.state.versions[version_id] = version
        return version

    def _run(self, given: dict[str, Any]) -> Any:
        reference = given.get("pipeline_version_reference") or {}
        version = self.state.versions.get(reference.get("pipeline_version_id", ""))
        if version is None or version["pipeline_id"] != reference.get("pipeline_id"):
            raise RefusalError(404, "Failed to create a run: ResourceNotFoundError: PipelineVersion not found")
        if given.get("experiment_id") not in self.state.experiments:
            raise RefusalError(404, "Failed to create a run: ResourceNotFoundError: Experiment not found")
        parameters = (given.get("runtime_config") or {}).get("parameters") or {}
        check_parameters(_parse(self.state.packages[reference["pipeline_version_id"]]), parameters)
        run_id = self.state.new_id("run")
        self.state.runs[run_id] = {**given, "run_id": run_id, "state": "PENDING"}
        return self.state.runs[run_id]

    def _create_recurring(self, given: dict[str, Any]) -> Any:
        failed = "Failed to create a recurring run: "
        if not given.get("display_name"):
            raise RefusalError(400, failed + "Invalid input error: Recurring run name is empty.")
        experiment = self.state.experiments.get(given.get("experiment_id", ""))
        if experiment is None:
            raise RefusalError(404, failed + "ResourceNotFoundError: Experiment not found")
        self._need_namespace(experiment.get("namespace"))
        reference = given.get("pipeline_version_reference") or {}
        version = self.state.versions.get(reference.get("pipeline_version_id", ""))
        if version is None or version["pipeline_id"] != reference.get("pipeline_id"):
            raise RefusalError(404, failed + "ResourceNotFoundError: PipelineVersion not found")
        if not 1 <= int(given.get("max_concurrency") or 0) <= 10:
            raise RefusalError(400, failed + "Max concurrency of a recurring run must be at least 1 and at most 10")
        check_trigger(given.get("trigger") or {})
        parameters = (given.get("runtime_config") or {}).get("parameters") or {}
        check_parameters(_parse(self.state.packages[reference["pipeline_version_id"]]), parameters)
        recurring_run_id = self.state.new_id("recurring")
        enabled = given.get("mode") == "ENABLE"
        self.state.recurring[recurring_run_id] = {
            **given,
            "max_concurrency": str(given["max_concurrency"]),  # an int64, which protocol buffers quote in JSON
            "recurring_run_id": recurring_run_id,
            "mode": "ENABLE" if enabled else "DISABLE",
            "status": "ENABLED" if enabled else "DISABLED",
            "namespace": experiment.get("namespace", ""),
            "created_at": "2026-01-01T00:00:00Z",
        }
        return self.state.recurring[recurring_run_id]

    def _recurring(self, recurring_run_id: str) -> dict[str, Any]:
        if recurring_run_id not in self.state.recurring:
            raise RefusalError(404, f"ResourceNotFoundError: Recurring run {recurring_run_id} not found")
        return self.state.recurring[recurring_run_id]

    def _look(self, run_id: str) -> Any:
        if run_id not in self.state.runs:
            raise RefusalError(404, f"Failed to get a run: ResourceNotFoundError: Run {run_id} not found")
        number = self.state.looks.get(run_id, 0)
        self.state.looks[run_id] = number + 1
        state, tasks = self.state.course[min(number, len(self.state.course) - 1)]
        details = [{"display_name": "root", "state": "RUNNING"}, {"display_name": "root-driver", "state": "SUCCEEDED"}]
        for name, (task_state, message) in tasks.items():
            detail: dict[str, Any] = {"run_id": run_id, "display_name": name, "state": task_state}
            details.append(detail | ({"error": {"code": 13, "message": message}} if message else {}))
        return {**self.state.runs[run_id], "state": state, "run_details": {"task_details": details}}


@cache
def _parse(text: bytes) -> pipeline_spec_pb2.PipelineSpec:
    try:
        documents = list(yaml.safe_load_all(text))
        spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for document in documents[1:]:
            json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
    except (yaml.YAMLError, json_format.ParseError, IndexError) as error:
        raise RefusalError(400, f"invalid v2 pipeline spec: {error}", upload=True) from error
    if spec.schema_version != "2.1.0" or not spec.pipeline_info.name:
        raise RefusalError(400, "KFP only supports schema version 2.1.0", upload=True)
    return spec


def check_trigger(trigger: dict[str, Any]) -> None:
    """What the backend takes for times: robfig/cron 1, five or six fields of which the first are seconds."""
    if "cron_schedule" in trigger:
        fields = trigger["cron_schedule"].get("cron", "").split()
        bounds = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
        try:
            if len(fields) not in (5, 6):
                raise ValueError(f"Expected 5 to 6 fields, found {len(fields)}")
            for text, (low, high) in zip(fields, bounds, strict=False):
                for part in text.split(","):
                    span, _, step = part.partition("/")
                    ends = [low, high] if span == "*" else [int(end) for end in span.split("-")]
                    if not low <= ends[0] <= ends[-1] <= high or int(step or 1) < 1:
                        raise ValueError(f"{part} is out of {low}-{high}")
        except ValueError as error:
            raise RefusalError(400, f"Schedule cron is not a supported format. Error: {error}") from error
    if "periodic_schedule" in trigger:
        seconds = int(trigger["periodic_schedule"].get("interval_second", 0))
        if seconds < 1:
            raise RefusalError(400, f"Found invalid period schedule interval {seconds}")


def check_parameters(spec: pipeline_spec_pb2.PipelineSpec, given: dict[str, Any]) -> None:
    """validatePipelineJobInputs of template/v2_template.go."""
    declared = spec.root.input_definitions.parameters
    types = pipeline_spec_pb2.ParameterType.ParameterTypeEnum
    kinds: dict[str, tuple[type, ...]] = {
        "STRING": (str,),
        "NUMBER_INTEGER": (int, float),
        "NUMBER_DOUBLE": (int, float),
        "BOOLEAN": (bool,),
        "LIST": (list,),
        "STRUCT": (dict,),
    }
    for name, parameter in declared.items():
        kind = types.Name(parameter.parameter_type)
        if name not in given:
            if not parameter.is_optional and not parameter.HasField("default_value"):
                raise RefusalError(
                    400,
                    f"Invalid input error: parameter {name} is not optional, yet has neither default "
                    "value nor user provided value",
                )
        elif not isinstance(given[name], kinds[kind]) or (isinstance(given[name], bool) and kind != "BOOLEAN"):
            raise RefusalError(400, f"Invalid input error: input parameter {name} requires type {kind}")
    extra = sorted(set(given) - set(declared))
    if extra:
        raise RefusalError(400, f"Invalid input error: parameter(s) provided are not required by pipeline: {extra}")
