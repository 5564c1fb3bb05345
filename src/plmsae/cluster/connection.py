"""Where Kubeflow Pipelines is, a client that is connected to it, and its errors in words a user can act on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from plmsae.errors import PlmsaeError, TryAgainError, UserError

HOST_VARIABLE = "KFP_HOST"
TOKEN_VARIABLE = "KFP_TOKEN"
_PORT_FORWARD = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80 makes it http://localhost:8080"
_LOGIN = ("login", "auth", "dex", "oauth", "signin", "sso")


def address(given: str | None = None) -> str:
    """The address of Kubeflow Pipelines: as given, or from `KFP_HOST`; what a browser shows is taken too.

    Raises:
        UserError: There is none, or it is not an http(s) address.
    """
    where = "--host" if given else f"environment variable {HOST_VARIABLE}"
    text = (given or os.environ.get(HOST_VARIABLE, "")).strip()
    if not text:
        raise UserError(
            "no address of Kubeflow Pipelines is given", fix=f"pass --host or set {HOST_VARIABLE}; {_PORT_FORWARD}"
        )
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError(
            f"'{text.rpartition('@')[2]}' is not an address of Kubeflow Pipelines",
            where=where,
            fix="write http://HOST:PORT or https://HOST",
        )
    if parts.username is not None:
        raise UserError(
            "the address of Kubeflow Pipelines holds a user name",
            where=where,
            fix=f"leave it out and put a bearer token into {TOKEN_VARIABLE}",
        )
    return parts._replace(query="", fragment="").geturl().rstrip("/")


@contextmanager
def connect(host: str, namespace: str | None = None) -> Iterator[Any]:
    """A `kfp.Client` that was seen to talk to Kubeflow Pipelines; the token comes from `KFP_TOKEN`.

    Args:
        host: What `address` returned.
        namespace: Namespace of a multi-user installation. In a pod it is the pod's own if it is not given.

    Yields:
        `plmsae.cluster.client.Client`.

    Raises:
        UserError: kfp is not installed, something else answers there, access is refused, or a request is.
        TryAgainError: Nothing answers within seconds, or the server fails.
    """
    try:
        from plmsae.cluster.client import Client
    except ModuleNotFoundError as error:
        raise UserError(
            "submitting needs kfp, which is not installed", fix="make install, or: pip install 'plmsae[pipeline]'"
        ) from error
    token = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if token and not (token.isascii() and token.isprintable()):
        raise UserError(
            f"{TOKEN_VARIABLE} does not hold a token",
            where=f"environment variable {TOKEN_VARIABLE}",
            fix="set it to the token alone, one line",
        )
    with translated(host):
        client = Client(host, namespace, token)
        if client.multi_user and not client.get_user_namespace():
            raise UserError(
                "this Kubeflow keeps its users apart by namespace, and none is given",
                where=host,
                fix="pass --namespace, the name at the top of its dashboard",
            )
        yield client


@contextmanager
def translated(host: str) -> Iterator[None]:
    """Turn the exceptions of KFP's client and of the network into ours.

    Anything else is a bug and passes unchanged.
    """
    import urllib3
    from kfp_server_api import ApiException

    from plmsae.cluster.client import NotKfpError

    try:
        yield
    except ApiException as error:
        raise _refused(error, host) from error
    except NotKfpError as error:
        raise _elsewhere(host, str(error)) from error
    except urllib3.exceptions.HTTPError as error:
        cause: BaseException = getattr(error, "reason", None) or error
        cause = cause.__cause__ or cause
        # Wrapped by urllib3 in a class of its own, so the text is what can be told apart.
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            raise UserError(
                f"the certificate of Kubeflow Pipelines is not trusted: {cause}",
                where=host,
                fix="set SSL_CERT_FILE to the certificates of its authority",
            ) from error
        raise TryAgainError(
            f"Kubeflow Pipelines cannot be reached: {cause}",
            where=host,
            fix=f"start it or correct the address; {_PORT_FORWARD}",
        ) from error


def _refused(error: Any, host: str) -> PlmsaeError:
    status = int(error.status or 0)
    said = _message(error.body)
    if status == 401:
        given = bool(os.environ.get(TOKEN_VARIABLE, "").strip())
        return UserError(
            f"Kubeflow Pipelines does not accept the token (status 401){said}"
            if given
            else f"Kubeflow Pipelines asks for a token (status 401){said}",
            where=host,
            fix=f"set {TOKEN_VARIABLE} to a valid bearer token"
            + ("; this one may have expired, or be for another cluster" if given else ""),
        )
    if status == 403:
        return UserError(
            f"Kubeflow Pipelines refuses access (status 403){said}",
            where=host,
            fix=f"ask for the right in that namespace, or set {TOKEN_VARIABLE} to the token of an account that has it",
        )
    if 300 <= status < 400:
        location = urlsplit((error.headers or {}).get("Location", ""))
        target = location._replace(query="", fragment="").geturl()
        if any(word in target.lower() for word in _LOGIN):
            return UserError(
                f"Kubeflow Pipelines asks to log in (it redirects to {target})",
                where=host,
                fix=f"set {TOKEN_VARIABLE} to a bearer token; {_PORT_FORWARD}",
            )
        return _elsewhere(host, f"it redirects to {target}")
    if status == 404 and not said:
        return _elsewhere(host, "status 404")
    if status >= 500 or status in (0, 408, 429):
        return TryAgainError(
            f"Kubeflow Pipelines failed (status {status}){said}",
            where=host,
            fix="look at its server (deployment ml-pipeline), then run it again",
        )
    return UserError(
        f"Kubeflow Pipelines refuses the request (status {status}){said}", where=host, fix="correct what it names"
    )


def _elsewhere(host: str, why: str) -> UserError:
    return UserError(
        f"what answers there is not the API of Kubeflow Pipelines ({why})",
        where=host,
        fix=f"behind Kubeflow's dashboard the address ends in /pipeline; {_PORT_FORWARD}",
    )


def _message(body: Any) -> str:
    """`: what the server says`, or nothing if it says nothing in its own words (an HTML page of a proxy)."""
    try:
        answer = json.loads(body or "")
    except ValueError:
        return ""
    if not isinstance(answer, dict):
        return ""
    text = next((answer[key] for key in ("error_message", "message", "error") if isinstance(answer.get(key), str)), "")
    text = " ".join(text.split())
    return f": {text[:600]}" if text else ""
