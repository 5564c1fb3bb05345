"""A real HTTP server in a thread, with the habits of real ones and, on demand, their bad days.

`web` is a fixture: put files into `WebServer.files`, and what goes wrong into `WebServer.faults`, one per request in
order: `503`, `429:2` (with Retry-After), `cut:1000` (the body ends after 1000 bytes), `reset`, `silent:3` (seconds),
`slow:200` (bytes per second), `garbage`. Files answer to Range, If-Range, If-None-Match and If-Modified-Since.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

MODIFIED = "Wed, 15 Oct 2025 12:00:00 GMT"


@dataclass
class WebServer:
    """A running server: its address, what it serves and how, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    ranges: bool = True
    etags: bool = True
    dates: bool = True
    lengths: bool = True  # False: HTTP/1.0, the end of the connection is the end of the file
    chunked: bool = False

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def sent_ranges(self) -> list[str]:
        return [headers["Range"] for _, headers in self.requests if "Range" in headers]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: WebServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self._answer()

    def _answer(self) -> None:
        state = self.state
        state.requests.append((self.path, dict(self.headers)))
        fault, _, value = (state.faults.pop(0) if state.faults else "").partition(":")
        self.close_connection = True
        if fault.isdigit():
            headers = {"Retry-After": value} if value else {}
            return self._send(int(fault), b"busy", headers)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return self.connection.close()
        if fault == "silent":
            time.sleep(float(value or 3))
            return None
        if fault == "garbage":
            self.wfile.write(b"\x00\x01nonsense\r\n\r\n")
            return None
        path = self.path.partition("?")[0]
        if path in state.redirects:
            return self._send(302, b"", {"Location": state.redirects[path]})
        if path not in state.files:
            return self._send(404, b"nothing here", {})
        data = state.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = ({"ETag": etag} if state.etags else {}) | ({"Last-Modified": MODIFIED} if state.dates else {})
        if self.headers.get("If-None-Match") == etag and state.etags:
            return self._send(304, b"", headers)
        if state.dates and not state.etags and self.headers.get("If-Modified-Since") == MODIFIED:
            return self._send(304, b"", headers)
        start, status, body = 0, 200, data
        if state.ranges and "Range" in self.headers and self.headers.get("If-Range") in (etag, MODIFIED):
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, body = 206, data[start:]
        limit = int(value) if fault == "cut" else None
        return self._send(status, body, headers, limit, int(value) if fault == "slow" else None)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None, rate: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.state.chunked and status == 200:
            self.send_header("Transfer-Encoding", "chunked")
        elif self.state.lengths and status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if rate is not None:
            for place in range(0, len(body), max(rate // 20, 1)):
                self.wfile.write(body[place : place + max(rate // 20, 1)])
                self.wfile.flush()
                time.sleep(0.05)
            return
        sent = body if limit is None else body[:limit]
        if self.state.chunked and status == 200:
            for place in range(0, len(sent), 50_000):
                piece = sent[place : place + 50_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if limit is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)


@contextlib.contextmanager
def serve() -> Iterator[WebServer]:
    """A server for the length of the block."""
    state = WebServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve() as state:
        yield state
