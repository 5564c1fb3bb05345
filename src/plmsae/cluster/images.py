"""Is an image in its registry? Asked before a run is created: Kubernetes would wait for a missing one for hours.

Speaks the pull half of the OCI distribution API, anonymously: no credentials are read, sent or stored.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlencode, urlsplit

from plmsae.errors import TryAgainError, UserError

ANSWER_SECONDS = 10.0
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?")
_PART = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_SKIP = "--no-image-check, if the cluster's nodes have it all the same"


@dataclass(frozen=True)
class ImageReference:
    """A parsed image reference.

    Attributes:
        registry: Host, with its port if it has one; `docker.io` when none is written.
        repository: Path in the registry, `library/NAME` for a bare name of Docker Hub.
        tag: The tag, `latest` when neither tag nor digest is written.
        digest: `sha256:...`; it decides when there is a tag as well.
    """

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def version(self) -> str:
        """What identifies the manifest: the digest or else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def api(self) -> str:
        """URL of its manifest in the distribution API."""
        host = "registry-1.docker.io" if self.registry == "docker.io" else self.registry
        scheme = "http" if _is_local(host) else "https"
        return f"{scheme}://{host}/v2/{self.repository}/manifests/{self.version}"

    def pinned(self, digest: str) -> str:
        """The reference of the same repository by digest."""
        return f"{self.registry}/{self.repository}@{digest}"


@dataclass(frozen=True)
class Found:
    """What a registry says of an image: its digest, or why that could not be asked."""

    digest: str | None
    warning: str | None = None


def parse_reference(text: str) -> ImageReference:
    """Parse `[HOST[:PORT]/]PATH[:TAG][@DIGEST]` as Docker and Kubernetes do.

    Raises:
        UserError: It is not an image reference.
    """
    name, at, digest = text.partition("@")
    first, slash, rest = name.partition("/")
    # Docker's rule: the first part is a host only if it cannot be a folder of Docker Hub.
    if slash and (any(mark in first for mark in ".:") or first == "localhost" or first != first.lower()):
        registry = "docker.io" if first in ("index.docker.io", "registry-1.docker.io") else first
    else:
        registry, rest = "docker.io", name
    repository, colon, tag = rest.partition(":")
    if registry == "docker.io" and "/" not in repository:
        repository = f"library/{repository}"
    valid = (
        _REGISTRY.fullmatch(registry)
        and _REPOSITORY.fullmatch(repository)
        and (_TAG.fullmatch(tag) if colon else True)
        and (_DIGEST.fullmatch(digest) if at else True)
        and len(f"{registry}/{repository}") <= 255
    )
    if not valid:
        raise UserError(
            f"'{text}' is not an image reference",
            where="--image",
            fix="for example registry.example.org/plmsae@sha256:DIGEST, all lower case",
        )
    return ImageReference(registry, repository, tag or (None if digest else "latest"), digest or None)


def look_up(reference: ImageReference) -> Found:
    """Ask the registry for the image's digest.

    Returns:
        The digest, or a warning where the registry does not tell strangers.

    Raises:
        UserError: The image is not in the registry, or names this machine's own store; the registry is not trusted.
        TryAgainError: The registry does not answer within seconds, or fails.
    """
    if reference.registry == "localhost":
        raise UserError(
            f"image '{reference}' is in this machine's own store, where no cluster can pull it",
            where="--image",
            fix=f"push it to a registry and name it there; {_SKIP}",
        )
    status, headers = _head(reference, None)
    if status == 401 and (token := _anonymous_token(reference, headers.get("www-authenticate", ""))):
        status, headers = _head(reference, token)
    if status == 200:
        digest = reference.digest or headers.get("docker-content-digest", "")
        return Found(digest if _DIGEST.fullmatch(digest) else None)
    if status == 404:
        raise UserError(
            f"image '{reference}' is not in the registry",
            where=reference.registry,
            fix=f"push it, or correct the name, tag or digest; {_SKIP}",
        )
    if status in (401, 403):
        why = "its registry asks for credentials"
    elif status >= 500:
        raise TryAgainError(
            f"the registry of image '{reference}' fails (status {status})",
            where=reference.registry,
            fix=f"run it again; {_SKIP}",
        )
    else:
        why = f"its registry answers with status {status}"
    return Found(None, f"image '{reference}' could not be checked: {why}")


def _head(reference: ImageReference, token: str | None) -> tuple[int, Mapping[str, str]]:
    request = urllib.request.Request(reference.api, method="HEAD", headers={"Accept": ", ".join(_MANIFESTS)})
    if token:
        # Unredirected: a redirect to another host does not take the token along.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    status, headers, _ = _answer(request, reference)
    return status, headers


def _anonymous_token(reference: ImageReference, challenge: str) -> str | None:
    """The token that the registry's own service gives to anybody, or None if it gives none."""
    scheme, _, rest = challenge.partition(" ")
    fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    realm = urlsplit(fields.get("realm", ""))
    if scheme.lower() != "bearer" or not (
        realm.scheme == "https" or (realm.scheme == "http" and _is_local(realm.netloc))
    ):
        return None
    query = {"service": fields.get("service", ""), "scope": f"repository:{reference.repository}:pull"}
    address = realm._replace(query=urlencode({name: value for name, value in query.items() if value})).geturl()
    status, _, body = _answer(urllib.request.Request(address), reference)
    try:
        answer = json.loads(body) if status == 200 else {}
    except ValueError:
        return None
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    return token if isinstance(token, str) and token.isascii() and token.isprintable() else None


def _answer(request: urllib.request.Request, reference: ImageReference) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, and body, of any answer at all."""
    local = _is_local(request.host)
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        try:
            with opener.open(request, timeout=ANSWER_SECONDS) as response:
                return response.status, _lower(response.headers), response.read(1 << 20)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _lower(error.headers), b""
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        where = urlsplit(request.full_url).netloc
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"the certificate of the registry of image '{reference}' is not trusted: {reason}",
                where=where,
                fix=f"set SSL_CERT_FILE to the certificates of its authority; {_SKIP}",
            ) from error
        raise TryAgainError(
            f"the registry of image '{reference}' cannot be reached: {reason}",
            where=where,
            fix=f"check the network and the name of the registry, then run it again; {_SKIP}",
        ) from error


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _is_local(netloc: str) -> bool:
    host = urlsplit(f"//{netloc}").hostname or ""
    return host in ("localhost", "::1") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None
