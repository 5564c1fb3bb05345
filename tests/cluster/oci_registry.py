"""A container registry, as far as looking an image up goes: manifests of the OCI distribution API, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Access = Literal["open", "token", "private", "basic", "forbidden", "broken"]


@dataclass
class Registry:
    """A running registry.

    Attributes:
        host: `127.0.0.1:PORT`.
        access: Who may look: anybody (`open`), anybody with an anonymous token (`token`), nobody without a name
            (`private`: the token service refuses strangers; `basic`; `forbidden`), or nobody at all (`broken`).
        images: Repository -> tag -> digest.
        requests: (method, path, whether it carried a token) of every request.
    """

    host: str
    access: Access = "open"
    images: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)

    def push(self, repository: str, tag: str) -> str:
        """Add an image; returns its digest."""
        digest = "sha256:" + hashlib.sha256(f"{repository}:{tag}".encode()).hexdigest()
        self.images.setdefault(repository, {})[tag] = digest
        return digest


@contextmanager
def oci_registry() -> Iterator[Registry]:
    """Serve on a free port of this machine until the block ends."""
    registry = Registry("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": registry}))
    server.daemon_threads = True
    registry.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: Registry

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        registry = self.registry
        token = self.headers.get("Authorization")
        registry.requests.append(("HEAD", self.path, token is not None))
        _, _, rest = self.path.partition("/v2/")
        repository, _, version = rest.partition("/manifests/")
        if registry.access == "broken":
            return self._send(503)
        if registry.access == "forbidden":
            return self._send(403)
        if registry.access == "basic":
            return self._send(401, {"WWW-Authenticate": 'Basic realm="registry"'})
        if registry.access in ("token", "private") and token != f"Bearer anonymous-{repository}":
            challenge = f'Bearer realm="http://{registry.host}/token",service="registry",scope="repository:x:pull"'
            return self._send(401, {"WWW-Authenticate": challenge})
        if "vnd.oci.image.index" not in self.headers.get("Accept", ""):
            return self._send(406)
        tags = registry.images.get(repository, {})
        digest = version if version in tags.values() else tags.get(version)
        return self._send(200, {"Docker-Content-Digest": digest}) if digest else self._send(404)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.registry.requests.append(("GET", parts.path, False))
        scope = parse_qs(parts.query).get("scope", [""])[0]
        if self.registry.access == "private" or parts.path != "/token":
            return self._send(401)
        return self._send(200, body=json.dumps({"token": f"anonymous-{scope.split(':')[1]}"}).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
