"""Where MLflow is, a client that is connected to it, and its errors in words a user can act on.

`MLFLOW_TRACKING_URI` names a server or database. Without it the registry is embedded: a SQLite file and a folder of
artifacts below `.plmsae/mlflow` of the working folder, no server needed. A queued experiment of DVC works in a copy of
the working folder and uses the registry of the original.
"""

from __future__ import annotations

import fcntl
import http.client
import logging
import os
import shutil
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import DataError, PlmsaeError, TryAgainError, UserError

EXPERIMENT = "plmsae"
EMBEDDED = Path(".plmsae", "mlflow")
_DVC_ROOT = "DVC_ROOT"  # what DVC tells the commands of an experiment: the working folder that it was queued in
_DVC_COPIES = Path(".dvc", "tmp", "exps")
CONNECT_SECONDS = 5.0
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
# A server answers a download when it has the whole file from its bucket: 1 GB at 1 MB/s takes a quarter of an hour.
_TRANSFER_SECONDS = "1800"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
# Set only where the user has not: no telemetry, and an answer in seconds when a server goes away half-way.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    _TIMEOUT: "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow would send the client to the bucket itself, whose address is often known inside the cluster only.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_GUARD = threading.RLock()


@dataclass(frozen=True)
class Location:
    """Where the registry is.

    Attributes:
        uri: The MLflow tracking URI.
        database: The SQLite file, or None for a server.
        embedded: True for the default place below the working folder.
    """

    uri: str
    database: Path | None
    embedded: bool

    @property
    def shown(self) -> str:
        """The URI without a password, for messages."""
        return _masked(self.uri)

    @property
    def artifacts(self) -> Path | None:
        """The artifact folder beside a SQLite file; a server has its own."""
        return self.database.parent / "artifacts" if self.database else None


def locate(root: Path | None = None) -> Location:
    """Where the registry is for the working folder `root` (default: the current one).

    Raises:
        UserError: `MLFLOW_TRACKING_URI` has a scheme that MLflow does not know.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        database = _working_folder((root or Path.cwd()).resolve()) / EMBEDDED / "mlflow.db"
        return Location(f"sqlite:///{database}", database, embedded=True)
    scheme = uri.partition(":")[0] if ":" in uri else uri
    if scheme.partition("+")[0] not in _SCHEMES or (scheme.startswith("http") and not urlsplit(uri).hostname):
        raise UserError(
            f"MLFLOW_TRACKING_URI '{_masked(uri)}' does not name a registry",
            where="environment variable MLFLOW_TRACKING_URI",
            fix="use http(s)://HOST:PORT or sqlite:///FILE, or unset it for the embedded registry",
        )
    if scheme.partition("+")[0] != "sqlite":
        return Location(uri, None, embedded=False)
    path = uri.partition(":///")[2].partition("?")[0]
    if not path or path == ":memory:":
        raise UserError(
            f"MLFLOW_TRACKING_URI '{_masked(uri)}' does not name a file",
            where="environment variable MLFLOW_TRACKING_URI",
            fix="use sqlite:///FILE",
        )
    return Location(uri, Path(path).resolve(), embedded=False)


def _working_folder(root: Path) -> Path:
    """The folder itself, or of a copy that DVC made for a queued experiment, and removes, the one it was made from."""
    original = os.environ.get(_DVC_ROOT, "")
    return Path(original).resolve() if original and root.is_relative_to(Path(original, _DVC_COPIES).resolve()) else root


@contextmanager
def connect(root: Path | None = None, *, create: bool = False) -> Iterator[Any]:
    """A connected `MlflowClient`; inside the block MLflow's own functions use the same registry.

    Args:
        root: The working folder; decides where the embedded registry is.
        create: Make the embedded registry if there is none. Readers leave it False and change nothing on disk.

    Yields:
        `mlflow.MlflowClient`.

    Raises:
        UserError: MLflow is not installed, there is no registry yet, or access is denied.
        TryAgainError: The server does not answer within seconds, or the database is locked.
        DataError: The database is not one, or of another MLflow version.
    """
    location = locate(root)
    if location.database is None and location.uri.startswith("http"):
        _probe(location)
    if location.database is not None and not location.database.is_file() and not create:
        raise UserError(
            "there is no registry here yet",
            where=location.shown,
            fix="run in the folder where the pipeline ran (make run, or dvc repro), or set MLFLOW_TRACKING_URI; "
            "outputs that came by dvc pull are registered by: plmsae run register",
        )
    with _GUARD:
        mlflow = _mlflow()
        if location.database is not None and not location.database.is_file():
            _create_database(mlflow, location)
        # The SQL registry resolves `models:/` sources through MLflow's global URI, so the block sets and restores it.
        previous = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(location.uri)
        try:
            with translated(location):
                yield mlflow.MlflowClient()
        finally:
            mlflow.set_tracking_uri(previous)


@contextmanager
def transfer() -> Iterator[None]:
    """Inside `connect`, around files that go up or down: the server may be silent for long, or as the user says."""
    with _GUARD:
        before = os.environ.get(_TIMEOUT)
        if before == _ENVIRONMENT[_TIMEOUT]:
            os.environ[_TIMEOUT] = _TRANSFER_SECONDS
        try:
            yield
        finally:
            if before is not None:
                os.environ[_TIMEOUT] = before


def experiment_id(client: Any, root: Path | None = None) -> str:
    """Id of the experiment that runs go to: `MLFLOW_EXPERIMENT_ID`, `MLFLOW_EXPERIMENT_NAME` or `plmsae`.

    MLflow keeps the absolute path of an experiment's artifacts. In a working folder that was moved or mounted
    elsewhere, the experiment gets a twin with a suffix, so that nothing is written to the old place.
    """
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    artifacts = locate(root).artifacts
    found = client.get_experiment_by_name(name)
    if found is not None and artifacts is not None and found.artifact_location != str(artifacts):
        name = f"{name}-{sha256_bytes(str(artifacts).encode())[:8]}"
        found = client.get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        try:
            return str(client.create_experiment(name, artifact_location=str(artifacts) if artifacts else None))
        except MlflowException:  # another stage made it at the same moment
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


@contextmanager
def translated(location: Location) -> Iterator[None]:
    """Turn MLflow's, SQLAlchemy's and the network's exceptions into ours.

    Anything else is a bug and passes unchanged.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except PlmsaeError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise _in_words(error, location) from error


def _in_words(error: Exception, location: Location) -> PlmsaeError:
    text = _without_secrets(" ".join(str(error).split()), location)
    code = str(getattr(error, "error_code", ""))
    where = location.shown
    if "database is locked" in text:
        return TryAgainError("the registry's database is locked by another process", where=where, fix="run it again")
    if "not a database" in text or "malformed" in text:
        return DataError("the registry's database is corrupted", where=where, fix="restore it, or remove it and rerun")
    if "readonly database" in text or "unable to open database" in text or isinstance(error, PermissionError):
        return UserError("the registry cannot be opened or written", where=where, fix="check its permissions")
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return DataError(
            "the registry's database was made by another MLflow version",
            where=where,
            fix=f"install the versions of requirements.lock, or run: mlflow db upgrade {where}",
        )
    if "Invalid Host header" in text:
        return UserError(
            "the registry does not answer to this name",
            where=where,
            fix="use a name that the server allows, or add this one to its --allowed-hosts",
        )
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED") or " 401" in text or " 403" in text:
        return UserError(
            "the registry refuses access",
            where=where,
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if "/mlflow-artifacts/" in text and "500" in text:
        return TryAgainError(
            "the registry answers, but cannot store or fetch files",
            where=where,
            fix="the server's log says why (its bucket is missing, down, or refuses its keys); then run it again",
        )
    if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"):
        return UserError(f"the registry says: {text}", where=where, fix="list what it holds with: plmsae models")
    return TryAgainError(
        f"the registry failed: {text[:300]}", where=where, fix="look at the server (plmsae doctor), then run it again"
    )


def _masked(uri: str) -> str:
    """A URI without the password in it, which may hold a `/` that should have been written `%2F`."""
    password = _password(uri)
    return uri.replace(f":{password}@", ":***@") if password else uri


def _password(uri: str) -> str:
    """The password in a URI, as it is written there; empty if there is none."""
    scheme, _, rest = uri.partition("://")
    return "" if scheme.startswith("sqlite") else rest.rpartition("@")[0].partition(":")[2]


def _without_secrets(text: str, location: Location) -> str:
    """A message of a library, which may quote the address with the password in it, or a header."""
    shown = text.replace(location.uri, location.shown)
    password = _password(location.uri)
    variables = (os.environ.get(name, "") for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"))
    for secret in (password, urllib.parse.unquote(password), *variables):
        if secret:
            shown = shown.replace(secret, "***")
    return shown


def _probe(location: Location) -> None:
    """Fail within seconds when nothing answers there; MLflow's own retries would take minutes to say so."""
    parts = urlsplit(location.uri)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        with urllib.request.urlopen(plain.rstrip("/") + "/health", timeout=CONNECT_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # something answers; whether it is MLflow shows with the first request
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return  # MLflow has its own settings for certificates
        raise TryAgainError(
            f"the registry '{location.shown}' cannot be reached: {getattr(error, 'reason', error)}",
            where="environment variable MLFLOW_TRACKING_URI",
            fix="start the server or correct the address; unset the variable for the embedded registry",
        ) from error


def _mlflow() -> Any:
    """Import MLflow quietly."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise UserError(
            "the registry needs MLflow, which is not installed",
            fix="install plmsae with the extra 'train'; a SAE folder loads without it",
        ) from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def _create_database(mlflow: Any, location: Location) -> None:
    """Make the SQLite file beside its place and move it in: a kill in between leaves none rather than half of one."""
    database = location.database
    assert database is not None
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / "create.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for leftover in database.parent.glob("new-*"):
            shutil.rmtree(leftover)
        if database.is_file():
            return
        folder = database.parent / f"new-{uuid.uuid4().hex}"
        folder.mkdir()
        with translated(location):
            client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
        os.replace(folder / "mlflow.db", database)
        shutil.rmtree(folder)
