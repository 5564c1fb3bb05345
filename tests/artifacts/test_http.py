"""The downloader against a real server process that misbehaves on demand; what arrives is compared byte by byte."""

from __future__ import annotations

import hashlib
import ssl
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from plmsae.artifacts import http as web_module
from plmsae.artifacts.http import Limits, check_url, get
from plmsae.artifacts.http_cache import fetch
from plmsae.artifacts.http_download import Known, download
from plmsae.artifacts.metalink import Listed
from plmsae.errors import DataError, TryAgainError, UserError
from tests.s3server import free_port
from tests.webserver import WebServer, web

__all__ = ["web"]  # a fixture

FAST = Limits(attempts=5, first_wait=0.01, silence=0.4, window=0.3, window_bytes=2_000, longest_wait=2.0)
DATA = bytes(range(256)) * 12_000  # 3 MB
SMALL = b"small file\n" * 2_000  # 22 kB


def test_a_file_arrives_whole_with_what_the_server_said(web: WebServer, tmp_path: Path) -> None:
    web.files["/a/data.gz"] = DATA
    known = download(f"{web.url}/a/data.gz", tmp_path / "b" / "data.gz", limits=FAST)
    assert (tmp_path / "b" / "data.gz").read_bytes() == DATA
    assert known is not None
    assert known.last_modified == "Wed, 15 Oct 2025 12:00:00 GMT"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["data.gz"]
    assert web.requests[0][1]["Accept-Encoding"] == "identity"
    assert download(f"{web.url}/a/data.gz", tmp_path / "again", unless=known, limits=FAST) is None
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "faults",
    [
        ["503", "503"],
        ["429:0", "500", "502"],
        ["reset"],
        ["silent:0.8"],
        ["garbage"],
        ["cut:1500000"],
        ["cut:1500000", "503", "cut:700000", "reset"],
        ["cut:0", "cut:10"],
    ],
    ids=",".join,
)
@pytest.mark.parametrize("ranges", [True, False])
def test_bad_days_end_with_the_same_bytes(web: WebServer, tmp_path: Path, faults: list[str], ranges: bool) -> None:
    web.files["/f"], web.faults, web.ranges = DATA, list(faults), ranges
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA
    assert not web.faults
    assert len(web.requests) == len(faults) + 1


def test_it_goes_on_where_it_was_cut_and_asks_only_for_the_rest(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = DATA, ["cut:1000000", "cut:500000"]
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA
    assert web.sent_ranges() == ["bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_goes_on_too(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = DATA, ["cut:1000000", *["503"] * 4]
    with pytest.raises(TryAgainError, match=r"answers 503(.|\n)*run again later") as caught:
        download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert caught.value.exit_code == 75
    assert not (tmp_path / "f").exists()
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA
    assert web.sent_ranges()[-1] == "bytes=1000000-"


def test_a_run_that_had_everything_but_the_name_asks_for_nothing_more(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = SMALL, ["cut:21999", *["503"] * 4]
    with pytest.raises(TryAgainError):
        download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    with (tmp_path / ".f.part").open("ab") as handle:
        handle.write(SMALL[-1:])
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == SMALL
    assert web.sent_ranges()[-1] == "bytes=22000-"


def test_parts_of_two_versions_are_never_joined(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = DATA, ["cut:1000000", *["503"] * 4]
    with pytest.raises(TryAgainError):
        download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    web.files["/f"] = DATA[::-1]
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA[::-1]


@pytest.mark.parametrize(("etags", "dates", "resumes"), [(False, True, True), (False, False, False)])
def test_without_a_validator_it_starts_afresh(
    web: WebServer, tmp_path: Path, etags: bool, dates: bool, resumes: bool
) -> None:
    web.files["/f"], web.faults, web.etags, web.dates = DATA, ["cut:1500000"], etags, dates
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA
    assert bool(web.sent_ranges()) == resumes


def test_a_slow_server_is_given_up_and_a_steady_one_is_not(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = SMALL, ["slow:400"] * 5
    with pytest.raises(TryAgainError, match=r"sends only \d+ bytes per second"):
        download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    web.faults = ["slow:20000"]
    download(f"{web.url}/f", tmp_path / "g", limits=FAST)
    assert (tmp_path / "g").read_bytes() == SMALL


def test_retry_after_is_obeyed_up_to_a_bound(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = SMALL, ["503:1"]
    began = time.monotonic()
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert time.monotonic() - began >= 1.0
    web.faults = ["503:3600"]
    with pytest.raises(TryAgainError, match="asks to wait 3,600 s"):
        download(f"{web.url}/f", tmp_path / "g", limits=FAST)
    web.faults = ["429:Wed, 21 Oct 2099 07:28:00 GMT"]
    with pytest.raises(TryAgainError, match="asks to wait"):
        download(f"{web.url}/f", tmp_path / "g", limits=FAST)


def test_chunked_answers_are_checked_and_endless_ones_need_a_checksum(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.chunked, web.faults = DATA, True, ["cut:1000000"]
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA
    web.chunked, web.lengths = False, False
    with pytest.raises(DataError, match=r"does not say where the file ends(.|\n)*sha256"):
        download(f"{web.url}/f", tmp_path / "g", limits=FAST)
    download(f"{web.url}/f", tmp_path / "g", limits=FAST, listed=Listed(len(DATA), hashlib.md5(DATA).hexdigest()))
    assert (tmp_path / "g").read_bytes() == DATA


@pytest.mark.parametrize(
    ("faults", "problem"),
    [(["404"], "does not exist"), (["410"], "does not exist"), (["403"], "no permission"), (["400"], "refuses")],
)
def test_refusals_are_errors_at_once(web: WebServer, tmp_path: Path, faults: list[str], problem: str) -> None:
    web.files["/f"], web.faults = SMALL, faults
    with pytest.raises(UserError, match=problem) as caught:
        download(f"{web.url}/f?key=hidden-value", tmp_path / "f", limits=FAST)
    assert len(web.requests) == 1
    assert "hidden-value" not in str(caught.value)


def test_redirects_are_followed_within_bounds(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"] = SMALL
    web.redirects = {
        "/a": "/b",
        "/b": f"{web.url}/f",
        "/loop": "/loop",
        "/file": "file:///etc/hostname",
        "/ftp": "ftp://h/f",
    }
    download(f"{web.url}/a", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == SMALL
    with pytest.raises(UserError, match="leads in a circle"):
        get(f"{web.url}/loop", limits=FAST)
    for path, problem in (("/file", "leads in a circle or to no web server"), ("/ftp", "not a secure web address")):
        with pytest.raises(UserError, match=problem):
            get(f"{web.url}{path}", limits=FAST)


def test_files_beyond_the_cap_or_the_disk_are_refused_before_they_come(
    web: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/f"] = DATA
    with pytest.raises(DataError, match="files up to 1,000 are taken"):
        download(f"{web.url}/f", tmp_path / "f", limits=Limits(max_bytes=1000))
    web.chunked = True  # the size is not said, so it is counted
    with pytest.raises(DataError, match="files up to 2,000,000 are taken"):
        download(f"{web.url}/f", tmp_path / "f", limits=Limits(max_bytes=2_000_000))
    web.chunked = False
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(TryAgainError, match=r"the disk is full(.|\n)*free some space"):
        download(f"{web.url}/f", tmp_path / "g", limits=FAST)
    with pytest.raises(DataError, match="larger than 10 bytes"):
        get(f"{web.url}/f", max_bytes=10, limits=FAST)


def test_a_disk_that_fills_up_keeps_what_has_arrived(web: WebServer, tmp_path: Path) -> None:
    import resource
    import signal

    web.files["/f"] = DATA
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(TryAgainError, match="the disk is full: what has arrived is kept"):
            download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / ".f.part").stat().st_size == 1_000_000
    download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    assert (tmp_path / "f").read_bytes() == DATA
    assert web.sent_ranges() == ["bytes=1000000-"]


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "https:///x",
        "ftp://h/f",
        "file:///etc/passwd",
        "http://h:99999/f",
        "http://h/a b",
        "http://h/\n",
        "x",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="not a web address"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://me:pass-word@h/f", "https://h/f?X-Amz-Signature=abcdef", "https://h/f?token=abcdef"]
)
def test_addresses_with_secrets_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(UserError, match="would be recorded") as caught:
        check_url(url)
    assert "abcdef" not in str(caught.value)
    assert "pass-word" not in str(caught.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TryAgainError, match="the connection failed"):
        download(f"http://127.0.0.1:{free_port()}/f", tmp_path / "f", limits=FAST)
    assert time.monotonic() - began < 5


def test_certificates_are_verified(tmp_path: Path) -> None:
    """A server with a certificate that nobody signed: `openssl` is asked for one, as Python cannot make it."""
    import shutil
    import subprocess
    from http.server import BaseHTTPRequestHandler, HTTPServer

    if shutil.which("openssl") is None:
        pytest.skip("no openssl program")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"certificate of 'localhost' is not accepted(.|\n)*SSL_CERT_FILE"):
            download(f"https://localhost:{server.server_address[1]}/f", tmp_path / "f", limits=FAST)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def test_small_answers(web: WebServer) -> None:
    web.files["/f"], web.faults = SMALL, ["503", "cut:100"]
    assert get(f"{web.url}/f", limits=FAST) == SMALL
    assert len(web.requests) == 3


def test_fetch_asks_whether_the_file_changed_and_keeps_both(web: WebServer, tmp_path: Path) -> None:
    web.files["/data/proteins.fasta.gz"] = SMALL
    url = f"{web.url}/data/proteins.fasta.gz"
    first = fetch(url, tmp_path, limits=FAST)
    assert (first.name, first.read_bytes()) == ("proteins.fasta.gz", SMALL)
    assert fetch(url, tmp_path, limits=FAST) == first
    assert len(web.requests) == 2
    assert "If-None-Match" in web.requests[1][1]
    web.files["/data/proteins.fasta.gz"] = DATA
    second = fetch(url, tmp_path, limits=FAST)
    assert (second.read_bytes(), first.read_bytes()) == (DATA, SMALL)


def test_fetch_with_a_checksum_does_not_ask_again(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"] = SMALL
    digest = hashlib.sha256(SMALL).hexdigest()
    path = fetch(f"{web.url}/f", tmp_path, digest, limits=FAST)
    assert fetch(f"{web.url}/f", tmp_path, digest, limits=FAST) == path
    assert len(web.requests) == 1
    path.write_bytes(b"damaged")
    assert fetch(f"{web.url}/f", tmp_path, digest, limits=FAST).read_bytes() == SMALL
    assert len(web.requests) == 2


def test_two_processes_do_not_write_one_file(web: WebServer, tmp_path: Path) -> None:
    web.files["/f"], web.faults = SMALL, ["slow:20000"]
    thread = threading.Thread(target=fetch, args=(f"{web.url}/f", tmp_path), kwargs={"limits": FAST})
    thread.start()
    deadline = time.monotonic() + 10
    while not web.requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(TryAgainError, match="another process is downloading"):
        fetch(f"{web.url}/f", tmp_path, limits=FAST)
    thread.join()
    assert fetch(f"{web.url}/f", tmp_path, limits=FAST).read_bytes() == SMALL


def test_progress_is_a_line_per_interval(web: WebServer, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("plmsae.progress.SECONDS_BETWEEN_LINES", 0.2)
    web.files["/f"], web.faults = SMALL, ["slow:22000"]
    with caplog.at_level("INFO", logger="plmsae"):
        download(f"{web.url}/f", tmp_path / "f", limits=FAST)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("download done=")]
    assert len(lines) >= 3
    assert "total=22000" in lines[-1]
    assert "done=22000" in lines[-1]


def test_the_defaults_wait_for_seconds_and_not_for_ever() -> None:
    limits = web_module.DEFAULT
    waits = [limits.first_wait * 2**index for index in range(limits.attempts - 1)]
    assert 5 <= sum(waits) <= 60
    assert Known('W/"weak"', "").validator == ""
