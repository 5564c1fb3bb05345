"""An address that is wrong, shut, silent or someone else's ends in seconds, with what to do about it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import kfp as kfp_sdk
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from plmsae.cluster import client as client_module
from plmsae.cluster import images
from plmsae.cluster.connection import address, connect, translated
from plmsae.cluster.images import parse_reference
from plmsae.errors import PlmsaeError, TryAgainError, UserError
from tests.cluster.kfp_server import HTML, Fault, KfpServer, kfp_server

TOKEN = "eyJ0-secret-token"
JSON = {"Content-Type": "application/json"}


def caught(host: str, namespace: str | None = None) -> PlmsaeError:
    with pytest.raises(PlmsaeError) as error, connect(host, namespace) as client:
        client.list_pipelines()
    assert TOKEN not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("https://kubeflow.example.org/pipeline/#/runs?x=1", "https://kubeflow.example.org/pipeline"),
        (" https://kubeflow.example.org/pipeline/?ns=lab ", "https://kubeflow.example.org/pipeline"),
    ],
)
def test_what_a_browser_shows_is_an_address(given: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert address(given) == expected
    monkeypatch.setenv("KFP_HOST", given)
    assert address() == expected


@pytest.mark.parametrize(
    "given", ["localhost:8080", "kubeflow.example.org", "ftp://x", "http://", "http://x:notaport", "http://x:99999"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="is not an address") as error:
        address(given)
    assert error.value.where == "--host"


def test_no_address_says_how_to_give_one() -> None:
    with pytest.raises(UserError, match="no address") as error:
        address()
    assert error.value.fix is not None
    assert "KFP_HOST" in error.value.fix


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    for given in ("http://me:hunter2@localhost:8080", "me:hunter2@localhost"):
        with pytest.raises(UserError) as error:
            address(given)
        assert "hunter2" not in str(error.value)


def test_a_client_of_a_real_address_is_kfps_own(kfp: KfpServer) -> None:
    with connect(kfp.host) as client:
        assert isinstance(client, kfp_sdk.Client)
        assert client.list_pipelines().pipelines is None


def test_a_shut_port_is_said_in_seconds() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        error = caught(host)
    assert time.monotonic() - start < 5
    assert isinstance(error, TryAgainError)
    assert "refused" in error.problem
    assert error.where == host


def test_an_unknown_name_is_said_in_seconds() -> None:
    error = caught("http://kubeflow.invalid:8080")
    assert isinstance(error, TryAgainError)
    assert "kubeflow.invalid" in str(error)


def test_a_silent_address_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = caught(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert isinstance(error, TryAgainError)
    assert "timed out" in error.problem


def test_a_server_that_falls_silent_later_is_given_up(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with connect(kfp.host) as client:
            client.runs.api_client.configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(TryAgainError, match="timed out"), translated(kfp.host):
                client.list_pipelines()
    assert time.monotonic() - start < 5


def test_a_server_that_hangs_up_is_worth_another_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        error = caught(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert isinstance(error, TryAgainError)


def test_https_to_a_server_without_it_is_said(kfp: KfpServer) -> None:
    error = caught(kfp.host.replace("http://", "https://"))
    assert isinstance(error, TryAgainError)
    assert "cannot be reached" in error.problem


def test_a_private_authority_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with kfp_server(context) as server:
        error = caught(server.host)
        assert isinstance(error, UserError)
        assert "is not trusted" in error.problem
        assert "SSL_CERT_FILE" in str(error)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with connect(server.host) as client:
            assert client.list_pipelines().pipelines is None


def test_a_registry_of_a_private_authority_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    monkeypatch.setattr(images, "_is_local", lambda netloc: False)
    with kfp_server(context) as server:  # any server with TLS: it answers HEAD with 501
        reference = parse_reference(f"{urlsplit(server.host).netloc}/lab/plmsae:1.0")
        with pytest.raises(UserError, match="is not trusted"):
            images.look_up(reference)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(TryAgainError, match="status 501"):
            images.look_up(reference)


def self_signed(folder: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that nobody else has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubeflow of a test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(encoding)
    )
    return file


@pytest.mark.parametrize(
    "fault",
    [
        Fault("/healthz", 200),
        Fault("/healthz", 404),
        Fault("/healthz", 200, b"[1]", JSON),
        Fault("/healthz", 200, b'{"multi_user": "perhaps"}', JSON),
        Fault("/healthz", 200, b"\xff\xfe", JSON),
        Fault("/healthz", 302, b"", {"Location": "https://elsewhere.example.org/start?state=private"}),
    ],
)
def test_something_else_at_the_address_is_not_taken_for_kubeflow(kfp: KfpServer, fault: Fault) -> None:
    kfp.state.faults = [fault]
    error = caught(kfp.host)
    assert isinstance(error, UserError)
    assert "not the API of Kubeflow Pipelines" in error.problem
    assert "private" not in str(error)
    assert "html" not in error.problem.lower()


def test_a_login_page_asks_for_the_token(kfp: KfpServer) -> None:
    kfp.state.faults = [Fault("/healthz", 302, b"", {"Location": "/dex/auth?client_id=x&state=private"})]
    error = caught(kfp.host)
    assert isinstance(error, UserError)
    assert "asks to log in" in error.problem
    assert "KFP_TOKEN" in str(error)
    assert "private" not in str(error)


def test_a_token_of_the_environment_opens_the_door(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.state.token = TOKEN
    error = caught(kfp.host)
    assert isinstance(error, UserError)
    assert "asks for a token (status 401): Request header error" in error.problem
    assert "KFP_TOKEN" in str(error)
    monkeypatch.setenv("KFP_TOKEN", f"{TOKEN}-old")
    error = caught(kfp.host)
    assert "does not accept the token" in error.problem
    assert "expired" in str(error)
    monkeypatch.setenv("KFP_TOKEN", f"{TOKEN}\n")
    with connect(kfp.host) as client:
        assert client.list_pipelines().pipelines is None


def test_a_token_that_no_header_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", f"{TOKEN}\nX-Header: 1")
    assert "does not hold a token" in caught("http://127.0.0.1:1").problem


def test_a_token_does_not_follow_a_redirect(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    kfp.state.faults = [Fault("/healthz", 307, b"", {"Location": f"{kfp.host}/stolen"})]
    caught(kfp.host)
    assert kfp.state.requests == [("GET", "/apis/v2beta1/healthz")]


def test_forbidden_names_the_right_and_the_token(kfp: KfpServer) -> None:
    body = json.dumps({"error": "User 'x' is not authorized with reason", "code": 7}).encode()
    kfp.state.faults = [Fault("/pipelines", 403, body, JSON)]
    error = caught(kfp.host)
    assert isinstance(error, UserError)
    assert "(status 403): User 'x' is not authorized with reason" in error.problem
    assert "KFP_TOKEN" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (400, b'{"error_message": "bad\\n page size"}', UserError, "(status 400): bad page size"),
        (404, b'{"message": "no such thing"}', UserError, "(status 404): no such thing"),
        (500, b'{"error": "database is gone"}', TryAgainError, "(status 500): database is gone"),
        (503, HTML, TryAgainError, "(status 503)"),
        (429, b"slow down", TryAgainError, "(status 429)"),
        (400, b"[1, 2]", UserError, "(status 400)"),
    ],
)
def test_what_the_server_says_is_handed_on(
    kfp: KfpServer, status: int, body: bytes, kind: type[PlmsaeError], said: str
) -> None:
    kfp.state.faults = [Fault("/pipelines", status, body, JSON)]
    error = caught(kfp.host)
    assert type(error) is kind
    assert error.problem.endswith(said)


def test_several_users_need_a_namespace(kfp: KfpServer) -> None:
    kfp.state.multi_user = True
    assert "--namespace" in str(caught(kfp.host))
    with connect(kfp.host, "lab") as client:
        assert client.get_user_namespace() == "lab"
        assert client.list_pipelines(namespace="lab").pipelines is None


def test_the_users_own_settings_of_kfp_are_neither_used_nor_changed(
    kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tmp_path / "context.json"
    context.write_text('{"namespace": "other", "client_authentication_cookie": "session=1"}')
    monkeypatch.setattr(kfp_sdk.Client, "_LOCAL_KFP_CONTEXT", str(context))
    # In a pod, KFP's client would write the pod's namespace into that file.
    pod = tmp_path / "namespace"
    pod.write_text("mine")
    monkeypatch.setattr(kfp_sdk.Client, "_NAMESPACE_PATH", str(pod))
    # With this one set it would open a browser.
    monkeypatch.setenv("KF_PIPELINES_IAP_OAUTH2_CLIENT_ID", "id")
    before = context.read_bytes()
    with connect(kfp.host) as client:
        assert client.get_user_namespace() == ""
        assert client.runs.api_client.cookie is None
    kfp.state.multi_user = True
    with connect(kfp.host) as client:
        assert client.get_user_namespace() == "mine"
    assert context.read_bytes() == before
