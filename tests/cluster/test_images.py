"""Image references are read as Docker reads them, and every answer of a registry becomes the right decision."""

from __future__ import annotations

import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plmsae.cluster.images import ImageReference, look_up, parse_reference
from plmsae.errors import TryAgainError, UserError
from tests.cluster.oci_registry import Registry

DIGEST = "sha256:" + 64 * "0"
part = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True)
registries = st.from_regex(
    r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{2,6}){1,2}(:[1-9][0-9]{0,4})?", fullmatch=True
)
tags = st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
digests = st.none() | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(registries, st.lists(part, min_size=1, max_size=4), tags, digests)
def test_what_is_written_is_what_is_parsed(
    registry: str, parts: list[str], tag: str | None, digest: str | None
) -> None:
    text = "/".join([registry, *parts]) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = parse_reference(text)
    named = parts if registry != "docker.io" or len(parts) > 1 else ["library", *parts]
    assert (reference.registry, reference.repository) == (registry, "/".join(named))
    assert reference.version == (digest or tag or "latest")
    assert parse_reference(str(reference)) == reference


@given(st.lists(part.filter(lambda text: "." not in text and text != "localhost"), min_size=1, max_size=3), tags)
def test_a_name_without_a_host_is_on_docker_hub(parts: list[str], tag: str | None) -> None:
    reference = parse_reference("/".join(parts) + (f":{tag}" if tag else ""))
    assert reference.registry == "docker.io"
    assert reference.repository == "/".join(parts if len(parts) > 1 else ["library", *parts])
    assert reference.api.startswith("https://registry-1.docker.io/v2/")


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UserError:
        return
    assert reference == parse_reference(str(reference))


@pytest.mark.parametrize(
    ("text", "registry", "repository", "version"),
    [
        ("python", "docker.io", "library/python", "latest"),
        ("python:3.11-slim", "docker.io", "library/python", "3.11-slim"),
        ("lab/plmsae:1", "docker.io", "lab/plmsae", "1"),
        ("index.docker.io/python", "docker.io", "library/python", "latest"),
        ("ghcr.io/lab/plmsae:1", "ghcr.io", "lab/plmsae", "1"),
        ("localhost:5000/plmsae", "localhost:5000", "plmsae", "latest"),
        ("[::1]:5000/plmsae:2", "[::1]:5000", "plmsae", "2"),
        (f"ghcr.io/lab/plmsae:1@{DIGEST}", "ghcr.io", "lab/plmsae", DIGEST),
        ("Registry/plmsae", "Registry", "plmsae", "latest"),
    ],
)
def test_references_as_docker_reads_them(text: str, registry: str, repository: str, version: str) -> None:
    reference = parse_reference(text)
    assert (reference.registry, reference.repository, reference.version) == (registry, repository, version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "Plmsae",
        "lab/plm sae",
        "lab//plmsae",
        "lab/plmsae:",
        "lab/plmsae:tag:tag",
        "lab/plmsae@",
        "lab/plmsae@sha256:abc",
        "host:port/plmsae",
        "host.org:/plmsae",
        "https://ghcr.io/lab/plmsae",
        "ghcr.io/lab/plmsae:\n1",
        "ghcr.io/" + "a/" * 130 + "b",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not an image reference"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("registry", "scheme"),
    [("localhost:5000", "http"), ("127.0.0.1:5000", "http"), ("[::1]:5000", "http"), ("127.example.org", "https")],
)
def test_only_this_machine_is_asked_without_encryption(registry: str, scheme: str) -> None:
    assert ImageReference(registry, "plmsae", "1", None).api == f"{scheme}://{registry}/v2/plmsae/manifests/1"


@pytest.mark.parametrize("access", ["open", "token"])
def test_an_image_that_is_there_gives_its_digest(registry: Registry, access: str) -> None:
    registry.access = access  # type: ignore[assignment]
    digest = registry.images["lab/plmsae"]["1.0"]
    for version in (":1.0", f"@{digest}", f":gone@{digest}"):
        found = look_up(parse_reference(f"{registry.host}/lab/plmsae{version}"))
        assert (found.digest, found.warning) == (digest, None)


@pytest.mark.parametrize("access", ["open", "token"])
@pytest.mark.parametrize("name", ["lab/plmsae:2.0", "lab/other:1.0", f"lab/plmsae@{DIGEST}"])
def test_an_image_that_is_not_there_is_an_error(registry: Registry, access: str, name: str) -> None:
    registry.access = access  # type: ignore[assignment]
    with pytest.raises(UserError, match="is not in the registry"):
        look_up(parse_reference(f"{registry.host}/{name}"))


@pytest.mark.parametrize("access", ["private", "basic", "forbidden"])
def test_a_registry_that_knows_no_strangers_gives_a_warning(registry: Registry, access: str) -> None:
    registry.access = access  # type: ignore[assignment]
    found = look_up(parse_reference(f"{registry.host}/lab/plmsae:1.0"))
    assert found.digest is None
    assert found.warning is not None
    assert "asks for credentials" in found.warning


def test_a_registry_that_fails_is_worth_another_try(registry: Registry) -> None:
    registry.access = "broken"
    with pytest.raises(TryAgainError, match="status 503"):
        look_up(parse_reference(f"{registry.host}/lab/plmsae:1.0"))


def test_a_registry_that_is_away_is_worth_another_try() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with pytest.raises(TryAgainError, match="cannot be reached"):
        look_up(parse_reference(f"127.0.0.1:{port}/lab/plmsae:1.0"))


def test_a_registry_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plmsae.cluster.images.ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        start = time.monotonic()
        with pytest.raises(TryAgainError, match="timed out"):
            look_up(parse_reference(f"127.0.0.1:{listener.getsockname()[1]}/lab/plmsae:1.0"))
    assert time.monotonic() - start < 5


def test_an_image_of_the_local_store_is_no_image_for_a_cluster() -> None:
    with pytest.raises(UserError, match="no cluster can pull"):
        look_up(parse_reference("localhost/plmsae:cpu"))


def test_no_token_is_asked_of_an_unencrypted_stranger(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.access = "token"
    monkeypatch.setattr("plmsae.cluster.images._is_local", lambda netloc: netloc != "stranger.example.org")
    from plmsae.cluster import images

    reference = parse_reference(f"{registry.host}/lab/plmsae:1.0")
    assert images._anonymous_token(reference, 'Bearer realm="http://stranger.example.org/token"') is None
    assert images._anonymous_token(reference, 'Bearer realm="file:///etc/passwd"') is None
    assert registry.requests == []
