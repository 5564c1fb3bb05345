"""Pinning and caching against a server that speaks the hub's protocol, in a process that may look things up."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import load_file

from tests.plms import tiny

COMMIT = "a" * 40
REPOSITORY = "facebook/esm2_t6_8M_UR50D"
WITHOUT_WEIGHTS = "facebook/esm2_t12_35M_UR50D"
PICKLED = "Rostlab/prot_t5_xl_half_uniref50-enc"
PROGRAM = """
import json, sys
from plmsae.errors import PlmsaeError
from plmsae.plms import load_plm
for name, revision in json.loads(sys.argv[1]):
    try:
        plm = load_plm(name, revision)
        print(json.dumps([plm.revision, plm.d_model]))
    except PlmsaeError as error:
        print(json.dumps([type(error).__name__, error.problem]))
"""


@pytest.fixture(scope="module")
def pickled_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    tiny.prot_t5(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture
def hub(tiny_folder, pickled_folder, tmp_path):
    """Serves the tiny checkpoint at `main` and `COMMIT`, one without weights, and one whose weights are pickled."""
    config = tmp_path / "without"
    config.mkdir()
    (config / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    folders = {REPOSITORY: tiny_folder, WITHOUT_WEIGHTS: config, PICKLED: pickled_folder}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.wfile.write(self.answer())

        def answer(self):
            owner, name, _, revision, file = self.path.lstrip("/").split("?")[0].split("/")
            path = folders[f"{owner}/{name}"] / file
            body = path.read_bytes() if revision in ("main", COMMIT) and path.is_file() else b""
            self.send_response(200 if body else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if not body:
                known = revision in ("main", COMMIT)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RevisionNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load(tmp_path, endpoint, calls, **environment):
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    env.pop("HF_HUB_CACHE", None)
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls)],
        env={**env, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    return [json.loads(line) for line in out.splitlines()]


def test_a_branch_resolves_to_its_commit_and_the_cache_serves_later_loads(tmp_path, hub):
    results = load(
        tmp_path,
        hub,
        [
            [REPOSITORY, None],
            [REPOSITORY, COMMIT],
            [REPOSITORY, "nothing"],
            [WITHOUT_WEIGHTS, None],
            [f"{WITHOUT_WEIGHTS}?random=1", None],  # needs the configuration alone
            [f"{REPOSITORY}?permuted=1", COMMIT],
            [PICKLED, None],  # with its vocabulary
        ],
    )
    assert results[:2] == [[COMMIT, 24], [COMMIT, 24]]
    assert results[2][0] == "UserError"
    assert "no revision nothing of 'facebook/esm2_t6_8M_UR50D'" in results[2][1]
    assert results[3][0] == "UserError"
    assert "no safetensors" in results[3][1]
    assert results[4:] == [[COMMIT, 24]] * 3
    later = load(tmp_path, hub, [[REPOSITORY, None], [REPOSITORY, COMMIT]], HF_HUB_OFFLINE="1")
    assert later == [[COMMIT, 24], [COMMIT, 24]]


@pytest.mark.slow
def test_a_hub_that_refuses_connections(tmp_path):
    (result,) = load(tmp_path, "http://127.0.0.1:9", [[REPOSITORY, None]])
    assert result[0] == "TryAgainError"
    assert REPOSITORY in result[1]
