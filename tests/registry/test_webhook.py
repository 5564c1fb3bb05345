"""The webhook: what arrives, what never leaves, and how long it is waited for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from plmsae.errors import TryAgainError, UserError
from plmsae.registry.webhook import check, post


class Hook(ThreadingHTTPServer):
    """Keeps what it was sent; answers with `status` after `delay` seconds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.delay = 200, 0.0
        self.received: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/services/T0/secret"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        time.sleep(self.server.delay)
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_one_json_object_arrives(hook: Hook) -> None:
    post(hook.url, {"text": "drifted", "number": 3})
    ((path, headers, body),) = hook.received
    assert path == "/services/T0/secret"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"text": "drifted", "number": 3}


@pytest.mark.parametrize("status", [302, 307, 404, 500])
def test_a_refusal_says_so_without_the_address(hook: Hook, status: int) -> None:
    hook.status = status
    with pytest.raises(TryAgainError, match=f"'127.0.0.1' was not told: it answers {status}") as caught:
        post(hook.url, {})
    assert "secret" not in str(caught.value)
    assert len(hook.received) == 1  # redirects are not followed


def test_silence_has_an_end(hook: Hook) -> None:
    hook.delay = 1.0
    began = time.monotonic()
    with pytest.raises(TryAgainError, match="was not told"):
        post(hook.url, {}, seconds=0.2)
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "https:///x", "ftp://host/x", "https://host/a b", "http://h:99999/"]
)
def test_only_web_addresses_are_taken_and_none_is_repeated(url: str) -> None:
    with pytest.raises(UserError, match="not a web address") as caught:
        check(url)
    assert not url or url not in str(caught.value)
