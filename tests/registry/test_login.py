"""A real MLflow server that asks for a password: who may read, promote and delete, and that no password is shown."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from plmsae.errors import UserError
from plmsae.registry.connection import connect
from plmsae.registry.delete import delete
from plmsae.registry.gates import Gates
from plmsae.registry.load import pull
from plmsae.registry.promote import promote
from plmsae.registry.register import register
from plmsae.registry.rollback import rollback
from plmsae.registry.versions import aliases_of, list_versions
from tests.registry.outputs import FIDELITY, write_outputs
from tests.registry.server import mlflow_server
from tests.registry.test_promote import NAME

# Names and passwords of this server alone, each at least as long as MLflow asks for.
PASSWORDS = {user: f"pa/ss:{user}@{2**41}" for user in ("admin", "trainer", "promoter", "reader")}
Login = Callable[..., None]


@pytest.fixture
def server(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    settings = tmp_path / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/users.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-this-test",
    }
    database = f"sqlite:///{root}/.plmsae/mlflow/mlflow.db"
    with mlflow_server(tmp_path, database, str(tmp_path / "artifacts"), environment, app="basic-auth") as uri:
        for user in ("trainer", "promoter", "reader"):
            as_admin(uri, "2.0", "users/create", {"username": user, "password": PASSWORDS[user]})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def as_admin(uri: str, api: str, path: str, body: dict[str, str]) -> None:
    key = base64.b64encode(f"admin:{PASSWORDS['admin']}".encode()).decode()
    headers = {"Authorization": f"Basic {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{uri}/api/{api}/mlflow/{path}", json.dumps(body).encode(), headers)
    urllib.request.urlopen(request).close()


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Login:
    def use(user: str | None, password: str = "") -> None:
        for name, value in {"USERNAME": user, "PASSWORD": password or PASSWORDS.get(user or "")}.items():
            if value is None:
                monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
            else:
                monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)

    return use


@pytest.mark.long
@pytest.mark.timeout(600)
def test_who_may_do_what_and_no_password_is_shown(
    server: str,
    login: Login,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    messages = []

    def refused(what: Callable[[], object]) -> None:
        with pytest.raises(UserError, match="the registry refuses access") as caught:
            what()
        messages.append(str(caught.value))

    def look() -> tuple[list[int], dict[str, int]]:
        with connect(root) as client:
            return [item.version for item in list_versions(client)], aliases_of(client, NAME)

    first = write_outputs(root)
    for user, password in ((None, ""), ("trainer", "wrong"), ("nobody", "wrong")):
        login(user, password)
        refused(lambda: register(first, root))
        refused(lambda: pull(f"models:/{NAME}/1", tmp_path / "pulled"))

    # Who registers a name first may do everything with it.
    login("trainer")
    assert register(first, root).version == 1
    assert promote(NAME, 1, Gates(), root).promoted
    for seed, fvu in ((1, 0.25), (2, 0.26)):
        register(write_outputs(root, seed=seed, fidelity={**FIDELITY, "fvu": fvu}), root)

    # Everybody who has an account may read and pull, and nothing else.
    login("reader")
    assert look() == ([1, 2, 3], {"candidate": 3, "champion": 1})
    assert (pull(f"models:/{NAME}@champion", tmp_path / "pulled").folder / "sae.safetensors").is_file()
    refused(lambda: promote(NAME, 2, Gates(), root))
    refused(lambda: rollback(NAME, root=root))
    refused(lambda: delete(NAME, 3, root=root))
    assert look() == ([1, 2, 3], {"candidate": 3, "champion": 1})

    # With EDIT one may promote and still delete nothing; the user name and password may stand in the address.
    grant = {"username": "promoter", "resource_type": "registered_model", "resource_id": NAME, "permission": "EDIT"}
    as_admin(server, "3.0", "users/permissions/grant", grant)
    login(None)
    quoted = quote(PASSWORDS["promoter"], safe="")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("http://", f"http://promoter:{quoted}@"))
    assert promote(NAME, 2, Gates(), root).promoted
    assert look() == ([1, 2, 3], {"candidate": 3, "champion": 2, "previous": 1})
    refused(lambda: delete(NAME, 3, root=root))
    assert "http://promoter:***@" in messages[-1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)

    login("trainer")
    assert delete(NAME, 3, "a test", root).done
    assert look() == ([1, 2], {"champion": 2, "previous": 1})

    shown = "".join([*messages, *capfd.readouterr(), (tmp_path / "server.log").read_text()])
    for password in (*PASSWORDS.values(), *(quote(text, safe="") for text in PASSWORDS.values())):
        assert password not in shown
    assert "wrong" not in "".join(messages)
