"""Telling a chat room or an alarm that a re-evaluation needs a person: one POST of a small JSON object.

The address of a webhook is a secret: no message, record or log holds more of it than its host. What is sent holds names
and numbers, and nothing of the environment.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from plmsae.errors import TryAgainError, UserError

SECONDS = 10.0
VARIABLE = "PLMSAE_WEBHOOK"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: what is meant for one address goes to no other."""


def check(url: str) -> str:
    """The address itself.

    Raises:
        UserError: It is no http(s) address.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise UserError(
            "the address of the webhook is not a web address",
            where=f"--webhook, environment variable {VARIABLE}",
            fix="write https://HOST/PATH",
        )
    return url


def post(url: str, message: Mapping[str, Any], seconds: float = SECONDS) -> None:
    """Send a message.

    Args:
        url: The address, from `check`.
        message: A JSON object; services that show text take it from `text`.
        seconds: How long to wait for an answer.

    Raises:
        TryAgainError: The address does not answer, or refuses.
    """
    host = urlsplit(url).hostname
    request = urllib.request.Request(
        url,
        data=json.dumps(message, sort_keys=True).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "plmsae"},
        method="POST",
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds):
            return
    except urllib.error.HTTPError as error:
        problem = f"it answers {error.code}"
    except (OSError, http.client.HTTPException) as error:
        problem = type(getattr(error, "reason", error)).__name__
    raise TryAgainError(
        f"the webhook at '{host}' was not told: {problem}",
        where=f"--webhook, environment variable {VARIABLE}",
        fix="correct the address; the next re-evaluation tries again",
    )
