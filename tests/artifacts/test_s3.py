"""The S3 store against a real server process over http; every refusal in words, and no secret in any of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plmsae.artifacts.s3 import S3, S3Uri, fetch
from plmsae.errors import DataError, TryAgainError, UserError
from tests.s3server import S3Server, free_port, start


def use(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


def test_an_address_is_parsed_and_joined() -> None:
    uri = S3Uri.parse("s3://bucket/a/b.tsv.gz")
    assert (uri.bucket, uri.key, uri.name, str(uri)) == ("bucket", "a/b.tsv.gz", "b.tsv.gz", "s3://bucket/a/b.tsv.gz")
    assert str(S3Uri.parse("s3://bucket/a/") / "c" / "d") == "s3://bucket/a/c/d"
    assert str(S3Uri.parse("s3://bucket") / "c") == "s3://bucket/c"


@pytest.mark.parametrize("text", ["s3:/bucket/a", "bucket/a", "s3://", "s3:///a", "s3://b/a//c", "s3://b/../c", ""])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not the address of an S3 store") as caught:
        S3Uri.parse(text, "section.field")
    assert caught.value.where == "section.field"


def test_objects_go_there_and_come_back(s3: S3Server, tmp_path: Path) -> None:
    base = S3Uri.parse(f"s3://{s3.bucket()}/deep/prefix")
    store = S3()
    data = bytes(range(256)) * 40_000  # 10 MB: more than one piece
    (tmp_path / "file").write_bytes(data)
    store.upload(tmp_path / "file", base / "big", {"sha256": "ab"})
    store.put(base / "small", b"text")
    info = store.head(base / "big")
    assert info is not None
    assert (info.num_bytes, info.metadata) == (len(data), {"sha256": "ab"})
    assert "-" in info.etag  # written in pieces
    assert store.head(base / "none") is None
    assert store.get(base / "small") == b"text"
    assert store.get(base / "big", 1000, 300) == data[1000:1300]
    store.download(base / "big", tmp_path / "back" / "file")
    assert (tmp_path / "back" / "file").read_bytes() == data
    assert sorted(store.list(base)) == [("big", len(data)), ("small", 4)]
    for start_byte in (len(data) - 10, len(data) + 10):
        with pytest.raises(DataError, match="'big' is shorter than it was"):
            store.get(base / "big", start_byte, 20)


def test_listing_goes_beyond_a_page(s3: S3Server) -> None:
    bucket, client = s3.bucket(), s3.client()
    for number in range(1003):
        client.put_object(Bucket=bucket, Key=f"many/{number:04d}", Body=b"x")
    assert len(dict(S3().list(S3Uri.parse(f"s3://{bucket}/many")))) == 1003


def test_fetch_keeps_the_name_and_takes_what_is_there(s3: S3Server, tmp_path: Path) -> None:
    bucket, client = s3.bucket(), s3.client()
    uri = f"s3://{bucket}/data/proteins.tsv.gz"
    client.put_object(Bucket=bucket, Key="data/proteins.tsv.gz", Body=b"one")
    first = fetch(uri, tmp_path)
    assert (first.name, first.read_bytes()) == ("proteins.tsv.gz", b"one")
    written = first.stat().st_mtime_ns
    assert fetch(uri, tmp_path) == first
    assert first.stat().st_mtime_ns == written
    client.put_object(Bucket=bucket, Key="data/proteins.tsv.gz", Body=b"two")
    assert fetch(uri, tmp_path).read_bytes() == b"two"
    assert first.read_bytes() == b"one"
    (first.parent / ".proteins.tsv.gz.0.tmp").write_bytes(b"of a killed run")
    first.unlink()
    client.put_object(Bucket=bucket, Key="data/proteins.tsv.gz", Body=b"one")
    assert [path.name for path in fetch(uri, tmp_path).parent.iterdir()] == ["proteins.tsv.gz"]


def test_a_large_object_comes_in_pieces_and_a_later_call_goes_on(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket, client = s3.bucket(), s3.client()
    data, uri = bytes(range(250)) * 40, f"s3://{bucket}/big"
    client.put_object(Bucket=bucket, Key="big", Body=data)
    monkeypatch.setattr("plmsae.artifacts.s3.FETCH_BYTES", 3000)
    asked: list[int] = []
    get = S3.get

    def failing(store: S3, source: S3Uri, start: int = 0, num_bytes: int | None = None, **more: str) -> bytes:
        asked.append(start)
        if start == 6000 and asked.count(6000) == 1:
            raise TryAgainError("the line is dead")
        return get(store, source, start, num_bytes, **more)

    monkeypatch.setattr(S3, "get", failing)
    with pytest.raises(TryAgainError, match="the line is dead"):
        fetch(uri, tmp_path)
    assert fetch(uri, tmp_path).read_bytes() == data
    assert asked == [0, 3000, 6000, 6000, 9000]


def test_an_object_that_is_replaced_while_it_is_read_is_no_mixture(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket, client = s3.bucket(), s3.client()
    uri = f"s3://{bucket}/big"
    client.put_object(Bucket=bucket, Key="big", Body=b"a" * 5000)
    monkeypatch.setattr("plmsae.artifacts.s3.FETCH_BYTES", 3000)
    get = S3.get

    def replacing(store: S3, source: S3Uri, start: int = 0, num_bytes: int | None = None, **more: str) -> bytes:
        if start:
            client.put_object(Bucket=bucket, Key="big", Body=b"b" * 5000)
        return get(store, source, start, num_bytes, **more)

    with monkeypatch.context() as patched:
        patched.setattr(S3, "get", replacing)
        with pytest.raises(TryAgainError, match="was replaced while it was read"):
            fetch(uri, tmp_path)
    assert fetch(uri, tmp_path).read_bytes() == b"b" * 5000


def test_what_is_not_there_is_named(s3: S3Server, tmp_path: Path) -> None:
    bucket = s3.bucket()
    with pytest.raises(UserError, match=f"object 's3://{bucket}/a/b' does not exist"):
        fetch(f"s3://{bucket}/a/b", tmp_path)
    nowhere = S3Uri.parse("s3://no-such-bucket/a")
    store = S3()
    (tmp_path / "file").write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: store.head(nowhere),
        lambda: store.get(nowhere),
        lambda: store.put(nowhere, b""),
        lambda: store.upload(tmp_path / "file", nowhere, {}),
        lambda: list(store.list(nowhere)),
        lambda: store.download(nowhere, tmp_path / "copy"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="bucket 'no-such-bucket' does not exist"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="not a valid address"):
        store.get(S3Uri.parse("s3://B A/c"))


@pytest.fixture(scope="module")
def strict() -> Iterator[tuple[S3Server, S3Server, str]]:
    """A server that enforces permissions: one who may read and one who may do nothing in the bucket, and its name."""
    with start(enforced=True) as server:
        bucket = server.bucket()
        server.client().put_object(Bucket=bucket, Key="a", Body=b"secret data")
        reader, nobody = server.user(bucket, "s3:GetObject", "s3:ListBucket"), server.user("other", "s3:GetObject")
        server.enforce()
        yield reader, nobody, bucket


def test_who_may_only_read(strict: tuple[S3Server, S3Server, str], s3: S3Server, monkeypatch, tmp_path: Path) -> None:
    reader, _, bucket = strict
    use(monkeypatch, reader)
    uri = S3Uri.parse(f"s3://{bucket}/a")
    assert S3().get(uri) == b"secret data"
    (tmp_path / "file").write_bytes(b"x" * 9_000_000)
    for write in (lambda: S3().put(uri, b""), lambda: S3().upload(tmp_path / "file", uri, {})):
        with pytest.raises(UserError, match=f"no permission to write '{uri}'") as caught:
            write()
        assert reader.access_key not in str(caught.value)
        assert reader.secret_key not in str(caught.value)


@pytest.mark.parametrize("who", ["nobody", "unknown key", "wrong secret"])
def test_who_may_not_read(
    who: str, strict: tuple[S3Server, S3Server, str], s3: S3Server, monkeypatch, tmp_path: Path
) -> None:
    reader, nobody, bucket = strict
    user = {
        "nobody": nobody,
        "unknown key": S3Server(reader.url, "AKIAUNKNOWNKEY", "unknown-secret"),
        "wrong secret": S3Server(reader.url, reader.access_key, "wrong-secret"),
    }[who]
    use(monkeypatch, user)
    uri = S3Uri.parse(f"s3://{bucket}/a")
    for verb, call in (
        ("read", lambda: fetch(str(uri), tmp_path)),
        ("read", lambda: S3().get(uri)),
        ("write", lambda: S3().put(uri, b"")),
        ("list", lambda: list(S3().list(uri))),
    ):
        with pytest.raises(UserError, match=f"no permission to {verb} '{uri}'") as caught:
            call()
        assert user.access_key not in str(caught.value)
        assert user.secret_key not in str(caught.value)


def test_no_credentials(s3: S3Server, monkeypatch, tmp_path: Path) -> None:
    bucket = s3.bucket()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"no \(complete\) credentials(.|\n)*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS"):
        fetch(f"s3://{bucket}/a", tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match="AWS configuration cannot be used"):
        fetch(f"s3://{bucket}/a", tmp_path)


def test_a_server_that_is_not_there_is_named_within_seconds(s3: S3Server, monkeypatch, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)  # the more specific variable wins
    began = time.monotonic()
    with pytest.raises(TryAgainError, match=f"the S3 store at '{url}' cannot be reached"):
        fetch("s3://bucket/a", tmp_path)
    assert time.monotonic() - began < 10
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    with pytest.raises(UserError, match=r"endpoint 'localhost:9000' is not valid(.|\n)*http://HOST:PORT"):
        fetch("s3://bucket/a", tmp_path)
