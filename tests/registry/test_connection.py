"""Where the registry is, and what is said when it is not."""

from __future__ import annotations

import http.server
import os
import socket
import sqlite3
import threading
import time
from pathlib import Path

import mlflow
import pytest

from plmsae.errors import DataError, PlmsaeError, TryAgainError, UserError
from plmsae.registry import connection
from plmsae.registry.connection import connect, locate, transfer


def test_the_embedded_registry_is_below_the_working_folder(root: Path) -> None:
    location = locate(root)
    assert location.embedded
    assert location.database == root / ".plmsae" / "mlflow" / "mlflow.db"
    assert location.artifacts == root / ".plmsae" / "mlflow" / "artifacts"


def test_a_queued_experiment_uses_the_registry_of_the_folder_that_it_was_queued_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, own = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc", ".plmsae/mlflow/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))  # of every command that DVC runs
    assert locate(copy).database == tmp_path / own
    assert locate(tmp_path).database == tmp_path / own
    assert locate(tmp_path / "elsewhere").database == tmp_path / "elsewhere" / own
    monkeypatch.delenv("DVC_ROOT")
    assert locate(copy).database == copy / own


def test_a_reader_makes_no_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no registry here yet"), connect(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_registry_is_made_whole_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    leftover = tmp_path / ".plmsae" / "mlflow" / "new-cut-off"
    leftover.mkdir(parents=True)
    (leftover / "mlflow.db").write_bytes(b"half a database")
    before = mlflow.get_tracking_uri()
    with connect(tmp_path, create=True) as client:
        assert list(client.search_registered_models()) == []
        assert mlflow.get_tracking_uri() == locate(tmp_path).uri
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.get_tracking_uri() == before
    assert sorted(path.name for path in (tmp_path / ".plmsae" / "mlflow").iterdir()) == ["create.lock", "mlflow.db"]
    assert [path.name for path in tmp_path.iterdir()] == [".plmsae"]


@pytest.mark.parametrize("uri", ["htp://host", "./mlruns", "http://", "sqlite://", "sqlite:///:memory:", "file:///x"])
def test_an_address_that_names_no_registry_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        locate()


def test_a_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org:5000/x")
    assert locate().shown == "https://me:***@example.org:5000/x"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:a/secret@example.org")
    assert locate().shown == "https://me:***@example.org"
    for uri in ("htp://me:secret@example.org", "http://me:secret@"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError) as refused:
            locate()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_no_answer_of_a_server_shows_the_password(
    status: int, root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = type("Handler", (_Refusing,), {"status": status})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr/et")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for login in ("me:s3cr%2Fet@", ""):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}127.0.0.1:{server.server_port}")
            with pytest.raises(PlmsaeError) as caught, connect(root) as client:
                client.search_registered_models()
            assert "s3cr" not in str(caught.value)
        server.shutdown()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cr%2Fet@127.0.0.1:{free_port()}")
    with pytest.raises(TryAgainError) as caught, connect(root):
        pass
    assert "s3cr" not in str(caught.value)
    assert "s3cr" not in "".join(capfd.readouterr())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_is_down_is_said_within_seconds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    with pytest.raises(TryAgainError) as caught, connect(root):
        pass
    assert time.monotonic() - start < 10
    assert uri in str(caught.value)
    assert "unset the variable" in str(caught.value)


def test_a_server_that_never_answers_is_given_up_within_seconds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert connection.CONNECT_SECONDS <= 5
        monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
        start = time.monotonic()
        with pytest.raises(TryAgainError, match="cannot be reached"), connect(root):
            pass
        assert time.monotonic() - start < 5


class _Refusing(http.server.BaseHTTPRequestHandler):
    status = 403

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "expected"), [(401, UserError), (403, UserError), (404, TryAgainError)])
def test_a_server_that_refuses_or_is_none_gets_a_message(
    status: int, expected: type[Exception], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = type("Handler", (_Refusing,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(expected), connect(root) as client:
            client.search_registered_models()
        server.shutdown()


def test_a_file_that_is_no_database_is_a_data_error(root: Path) -> None:
    database = locate(root).database
    assert database is not None
    database.write_bytes(b"this is not SQLite, and it is long enough to be read as a header" * 40)
    with pytest.raises(DataError, match="corrupted"), connect(root) as client:
        client.search_registered_models()


def test_a_database_of_another_mlflow_is_a_data_error(root: Path) -> None:
    database = locate(root).database
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = 'abc'")
    with pytest.raises(DataError, match="another MLflow version"), connect(root) as client:
        client.search_registered_models()


@pytest.mark.parametrize(("given", "inside"), [(None, "1800"), ("7", "7")])
def test_files_may_take_longer_than_other_requests_unless_the_user_says_not(
    given: str | None, inside: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is None:
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", given)
    with connect(root):
        before = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        with transfer():
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == inside
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == before == (given or "60")
