"""What can go wrong with a web server, in words: whether to ask again, and if not, who can do something about it."""

from __future__ import annotations

import email.utils
import http.client
import socket
import ssl
import time
import urllib.error
from urllib.parse import urlsplit

from plmsae.errors import PlmsaeError, TryAgainError, UserError

# Request timeout, too early, too many requests: RFC 9110 and 6585. Every 5xx is the server's own trouble.
_BUSY = {408, 425, 429}


class NoSuchFileError(UserError):
    """The server has nothing at that address."""


class AskAgainError(Exception):
    """An attempt that failed in a way that another attempt may not.

    Args:
        reason: What happened, in words.
        wait: Seconds that the server asks to wait, if it does.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.wait = reason, wait


def shown(url: str) -> str:
    """The address for messages: without a query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}" + (
        "?..." if parts.query else ""
    )


def translate(error: Exception, url: str) -> AskAgainError | PlmsaeError:
    """What an exception of `urllib` means: ask again, or an error for the user.

    Args:
        error: What urllib, http.client, ssl or socket raised.
        url: The address that was asked for.
    """
    if isinstance(error, urllib.error.HTTPError):
        return _refused(error, url)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    host = urlsplit(url).hostname or url
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UserError(
            f"the certificate of '{host}' is not accepted ({reason.verify_message})",
            where=shown(url),
            fix="correct the address; a certificate of your own goes into the file that SSL_CERT_FILE names",
        )
    if isinstance(reason, socket.gaierror):
        return AskAgainError(f"the name '{host}' is not known")
    if isinstance(reason, TimeoutError):
        return AskAgainError("the server is silent")
    if isinstance(reason, http.client.IncompleteRead):
        return AskAgainError("the connection ended in the middle of the file")
    if isinstance(reason, OSError | http.client.HTTPException):
        words = getattr(reason, "strerror", None) or type(reason).__name__
        return AskAgainError(f"the connection failed ({words})")
    if isinstance(reason, ValueError):
        return AskAgainError("the server's answer cannot be understood")
    return UserError(f"'{shown(url)}' cannot be asked for: {reason}", fix="correct the address")


def give_up(reason: str, attempts: int, url: str) -> TryAgainError:
    """The error after the last attempt."""
    return TryAgainError(
        f"'{shown(url)}' cannot be read: {reason}" + (f" ({attempts} attempts)" if attempts > 1 else ""),
        where=urlsplit(url).hostname,
        fix="run again later; a download goes on where it stopped",
    )


def _refused(error: urllib.error.HTTPError, url: str) -> AskAgainError | PlmsaeError:
    """The meaning of an answer that is not a success."""
    status, where = error.code, shown(url)
    if status in _BUSY or status >= 500:
        return AskAgainError(
            f"the server answers {status} ({_phrase(status)})", _retry_after(error.headers.get("Retry-After"))
        )
    if status in (404, 410):
        return NoSuchFileError(f"'{where}' does not exist (the server answers {status})", fix="correct the address")
    if status in (401, 403, 407):
        return UserError(
            f"no permission to read '{where}' (the server answers {status})",
            fix="use an address that needs no login; download other files yourself and give their path",
        )
    if 300 <= status < 400:
        return UserError(f"'{where}' leads in a circle or to no web server", fix="correct the address")
    return UserError(
        f"the server refuses '{where}' (it answers {status}, {_phrase(status)})", fix="correct the address"
    )


def _phrase(status: int) -> str:
    return http.client.responses.get(status, "unknown")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None
