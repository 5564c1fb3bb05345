"""Asking web servers: bounded patience, verified certificates, and every failure in words.

A server that answers 503 or 429, breaks a connection, cuts a body or goes silent is asked again, later and later and as
late as its `Retry-After` says. Proxies are those of the environment (`HTTPS_PROXY`, ...); an address holds no password.
"""

from __future__ import annotations

import http.client
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from plmsae.artifacts.http_errors import AskAgainError, give_up, shown, translate
from plmsae.errors import DataError, UserError

SCHEMES = ("http://", "https://")
PIECE = 1 << 20
_SECRETS = {"x-amz-signature", "x-goog-signature", "signature", "sig", "token", "access_token", "api_key", "apikey"}
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How patient a download is.

    Attributes:
        attempts: Attempts in a row that may bring less than `progress_bytes` each.
        first_wait: Seconds before the second attempt; doubled for each further one, and up to half as much again.
        longest_wait: The longest that a server may ask to wait, in seconds; beyond it the run ends with "try again".
        silence: Seconds to connect, and without a byte, after which a connection is given up.
        window: Seconds in which at least `window_bytes` must arrive, else the connection is given up as too slow.
        window_bytes: See `window`.
        progress_bytes: See `attempts`.
        max_bytes: The largest file that is taken.
    """

    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 120.0
    silence: float = 30.0
    window: float = 60.0
    window_bytes: int = 65_536
    progress_bytes: int = 1_048_576
    max_bytes: int = 256 * 2**30


DEFAULT = Limits()


def check_url(url: str, where: str | None = None) -> str:
    """The address itself, if it may be asked for and recorded.

    Raises:
        UserError: It is no http(s) address, or holds a password, signature or token, which records would show.
    """
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or any(letter.isspace() or not letter.isprintable() for letter in url) or not url.isascii():
        raise UserError(f"'{url}' is not a web address", where=where, fix="write http://HOST/PATH or https://HOST/PATH")
    if parts.username or parts.password or any(name.lower() in _SECRETS for name, _ in parse_qsl(parts.query)):
        raise UserError(
            f"the address '{shown(url)}' holds a password, signature or token, which would be recorded",
            where=where,
            fix="use an address without one, or download the file yourself and give its path",
        )
    return url


def get(url: str, *, max_bytes: int = 1 << 24, limits: Limits | None = None) -> bytes:
    """A small answer, whole.

    Raises:
        NoSuchFileError: The server has nothing there.
        UserError: It refuses.
        DataError: The answer is larger than `max_bytes`.
        TryAgainError: It cannot be reached, or stays busy.
    """
    limits = limits or DEFAULT
    check_url(url)

    def attempt() -> bytes:
        with opened(url, {}, limits) as response:
            stated = content_length(response)
            parts, size = list[bytes](), 0
            for piece in pieces(response, limits):
                parts.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise DataError(f"the answer of '{shown(url)}' is larger than {max_bytes:,} bytes", fix="check it")
            if stated is not None and size != stated:
                raise AskAgainError(f"the connection ended after {size:,} of {stated:,} bytes")
            return b"".join(parts)

    return retrying(url, limits, attempt, lambda: 0)


class RangeRefusedError(Exception):
    """The server answers 416, and that the file has so many bytes."""

    def __init__(self, total: int | None) -> None:
        super().__init__()
        self.total = total


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, to web servers only, and never from https to http."""

    max_redirections = 5

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise UserError(
                f"'{shown(req.full_url)}' leads to '{shown(newurl)}', which is not a secure web address",
                fix="correct the address",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def opened(url: str, headers: dict[str, str], limits: Limits) -> Iterator[http.client.HTTPResponse]:
    """An answer of the server: a success, or 304.

    Raises:
        AskAgainError: It failed in a way that may pass.
        UserError: It failed for good.
    """
    from plmsae import __version__

    request = urllib.request.Request(url, headers={"User-Agent": f"plmsae/{__version__}", **headers})
    request.add_header("Accept-Encoding", "identity")  # a file as it is, so that ranges count its own bytes
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    opener = urllib.request.build_opener(_Redirects(), secure)
    try:
        with opener.open(request, timeout=limits.silence) as response:
            yield response
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and "Range" in headers:
                size = error.headers.get("Content-Range", "").strip().removeprefix("bytes */")
                raise RangeRefusedError(int(size) if size.isdigit() else None) from error
            if error.code == 304:
                yield error  # type: ignore[misc]
                return
        raise translate(error, url) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise translate(error, url) from error


def pieces(response: http.client.HTTPResponse, limits: Limits) -> Iterator[bytes]:
    """The body as it arrives.

    Raises:
        AskAgainError: Too little arrives.
    """
    began, received = time.monotonic(), 0
    while piece := response.read1(PIECE):
        yield piece
        received += len(piece)
        now = time.monotonic()
        if now - began >= limits.window:
            if received < limits.window_bytes:
                raise AskAgainError(f"the server sends only {received / (now - began):,.0f} bytes per second")
            began, received = now, 0


def retrying(url: str, limits: Limits, attempt: Callable[[], T], num_bytes: Callable[[], int]) -> T:
    """The result of an attempt, after as many as `limits` allows.

    Args:
        url: For messages.
        limits: How patient to be.
        attempt: Raises `AskAgainError` where another attempt may help.
        num_bytes: Bytes that have arrived for good so far: an attempt that adds to them was not in vain.

    Raises:
        TryAgainError: Enough attempts have failed.
    """
    failures = 0
    while True:
        before = num_bytes()
        try:
            return attempt()
        except AskAgainError as error:
            failures = 1 if num_bytes() - before >= limits.progress_bytes else failures + 1
            if error.wait is not None and error.wait > limits.longest_wait:
                raise give_up(f"{error.reason} and asks to wait {error.wait:,.0f} s", failures, url) from error
            if failures >= limits.attempts:
                raise give_up(error.reason, failures, url) from error
            # Many tasks that were refused together should not come back together.
            wait = limits.first_wait * 2 ** (failures - 1) * random.SystemRandom().uniform(1.0, 1.5)
            time.sleep(max(min(wait, limits.longest_wait), error.wait or 0.0))


def content_length(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the body, if the server says it."""
    value = response.headers.get("Content-Length", "").strip()
    return int(value) if value.isdigit() and not response.chunked else None
