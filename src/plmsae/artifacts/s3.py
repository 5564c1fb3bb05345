"""Objects of an S3 store: read, written, listed, with every failure in words.

Endpoint, region and credentials come from the standard environment alone (`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, ..., or the role of the machine), never from parameters, and no message holds
a key. Plain http endpoints work. Nothing here waits long: a store that cannot be reached is an error within seconds.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.lock import take
from plmsae.artifacts.s3_errors import NoSuchObjectError, translate
from plmsae.errors import DataError, UserError
from plmsae.progress import Progress

SCHEME = "s3://"
CONNECT_SECONDS, READ_SECONDS = 2, 30
ATTEMPTS = 3
MAX_CONNECTIONS = 16
FETCH_BYTES = 1 << 26


@dataclass(frozen=True)
class S3Uri:
    """`s3://bucket/key`; the key of a prefix has no slash at its end."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str, where: str | None = None) -> S3Uri:
        """Parse an address.

        Raises:
            UserError: It is not of the form s3://bucket/key; `where` says where it stands.
        """
        bucket, _, key = text.removeprefix(SCHEME).partition("/")
        key = key.strip("/")
        parts = key.split("/") if key else []
        if not text.startswith(SCHEME) or not bucket or any(part in ("", ".", "..") for part in parts):
            raise UserError(f"'{text}' is not the address of an S3 store", where=where, fix="write s3://BUCKET/PREFIX")
        return cls(bucket, key)

    def __truediv__(self, name: str) -> S3Uri:
        return S3Uri(self.bucket, f"{self.key}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True)
class ObjectInfo:
    """Size in bytes, entity tag and user metadata of an object."""

    num_bytes: int
    etag: str
    metadata: Mapping[str, str]


def endpoint() -> str:
    """The endpoint of the environment, or AWS, for messages."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS S3"


class S3:
    """A connection that several threads may use at once.

    Raises:
        UserError: The endpoint, region or profile of the environment is not valid.
    """

    def __init__(self) -> None:
        import boto3
        from botocore.config import Config

        with _in_words("reach", None):
            url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            session = boto3.session.Session()
            own: dict[str, Any] = {}
            if url:
                # A server of one's own has no name per bucket and may not know AWS's checksum trailers; what is read
                # from a store is verified by sha256 anyway.
                own = {
                    "s3": {"addressing_style": "path"},
                    "request_checksum_calculation": "when_required",
                    "response_checksum_validation": "when_required",
                }
            config = Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                max_pool_connections=MAX_CONNECTIONS,
                **own,
            )
            region = session.region_name or "us-east-1"
            try:
                self._client: Any = session.client("s3", endpoint_url=url, region_name=region, config=config)
            except ValueError as error:
                raise UserError(
                    f"the endpoint '{endpoint()}' is not valid",
                    where="AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL",
                    fix="write it as http://HOST:PORT or https://HOST",
                ) from error

    def head(self, uri: S3Uri) -> ObjectInfo | None:
        """Size, entity tag and metadata of an object, or None if the bucket does not hold it.

        Raises:
            UserError: No such bucket, or no permission.
            TryAgainError: The store cannot be reached.
        """
        from botocore.exceptions import ClientError

        with _in_words("read", uri):
            try:
                answer = self._client.head_object(Bucket=uri.bucket, Key=uri.key)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                    raise
                self._client.head_bucket(Bucket=uri.bucket)
                return None
        return ObjectInfo(int(answer["ContentLength"]), str(answer["ETag"]).strip('"'), dict(answer["Metadata"]))

    def get(self, uri: S3Uri, start: int = 0, num_bytes: int | None = None, *, etag: str | None = None) -> bytes:
        """The bytes of an object, or of a range of it; a connection that breaks is tried again.

        Raises:
            UserError: No such object, or no permission.
            DataError: The object ends before the range does.
            TryAgainError: The store cannot be reached, or the object is no longer the one of `etag`.
        """
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

        ranged = {} if num_bytes is None else {"Range": f"bytes={start}-{start + num_bytes - 1}"}
        if etag is not None:
            ranged["IfMatch"] = f'"{etag}"'
        data = b""
        with _in_words("read", uri):
            for attempt in range(ATTEMPTS):
                try:
                    data = self._client.get_object(Bucket=uri.bucket, Key=uri.key, **ranged)["Body"].read()
                    break
                except ClientError as error:
                    if error.response["ResponseMetadata"]["HTTPStatusCode"] != 416:  # a range beyond the end
                        raise
                    break
                except (HTTPClientError, IncompleteReadError):
                    if attempt == ATTEMPTS - 1:
                        raise
        if num_bytes is not None and len(data) != num_bytes:
            raise DataError(
                f"'{uri.name}' is shorter than it was: no {num_bytes} bytes at {start}",
                where=str(uri),
                fix="write the object again",
            )
        return data

    def download(self, uri: S3Uri, path: Path) -> None:
        """Write an object to a file, which appears whole or not at all.

        Raises:
            UserError: No such object, or no permission.
            TryAgainError: The store cannot be reached.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with _in_words("read", uri), temporary.open("wb") as handle:
                self._client.download_fileobj(uri.bucket, uri.key, handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def upload(self, path: Path, uri: S3Uri, metadata: Mapping[str, str]) -> None:
        """Write a file as an object, large ones in several pieces; the object appears whole or not at all.

        Raises:
            UserError: No such bucket, or no permission.
            TryAgainError: The store cannot be reached.
        """
        with path.open("rb") as handle, _in_words("write", uri):
            self._client.upload_fileobj(handle, uri.bucket, uri.key, ExtraArgs={"Metadata": dict(metadata)})

    def put(self, uri: S3Uri, data: bytes) -> None:
        """Write a small object.

        Raises:
            UserError: No such bucket, or no permission.
            TryAgainError: The store cannot be reached.
        """
        with _in_words("write", uri):
            self._client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data)

    def list(self, prefix: S3Uri) -> Iterator[tuple[str, int]]:
        """Key, relative to the prefix, and size of every object below it.

        Raises:
            UserError: No such bucket, or no permission.
            TryAgainError: The store cannot be reached.
        """
        base = f"{prefix.key}/" if prefix.key else ""
        with _in_words("list", prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=base):
                for item in page.get("Contents", ()):
                    yield str(item["Key"]).removeprefix(base), int(item["Size"])


def fetch(uri: str, folder: Path) -> Path:
    """Bring an object to this disk, unless it is there already; in pieces, so that a later call goes on.

    Args:
        uri: `s3://bucket/key`.
        folder: Folder of fetched objects.

    Returns:
        `folder/<hash of address and entity tag>/<name>`: another content is another file, and the name is kept because
        the format of a file shows in it.

    Raises:
        UserError: No such bucket or object, or no permission.
        TryAgainError: The store cannot be reached, the object changed meanwhile, or another process brings it.
    """
    source = S3Uri.parse(uri)
    store = S3()
    info = store.head(source)
    if info is None:
        raise NoSuchObjectError(f"object '{uri}' does not exist", where=endpoint(), fix="correct the address")
    place = folder / sha256_bytes(f"{source}\n{info.etag}".encode())[:32]
    path = place / source.name
    if path.is_file() and path.stat().st_size == info.num_bytes:
        return path
    place.mkdir(parents=True, exist_ok=True)
    part = place / f".{source.name}.part"
    with part.open("ab") as handle:
        take(handle, f"downloading '{uri}'")
        for other in place.iterdir():
            if other not in (part, path):
                other.unlink()  # what a killed run left
        if (size := part.stat().st_size) > info.num_bytes:
            handle.truncate(size := 0)
        with Progress("download", info.num_bytes, "bytes", done=size) as progress:
            while size < info.num_bytes:
                data = store.get(source, size, min(FETCH_BYTES, info.num_bytes - size), etag=info.etag)
                handle.write(data)
                size += len(data)
                progress.update(len(data))
        handle.flush()
        os.fsync(handle.fileno())
        os.replace(part, path)
    return path


@contextmanager
def _in_words(action: str, uri: S3Uri | None) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise translate(error, action, str(uri) if uri else None, endpoint()) from error
