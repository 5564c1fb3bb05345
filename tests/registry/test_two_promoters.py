"""Two real processes promote against a real MLflow server at the same moment, again and again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from plmsae.registry.audit import records
from plmsae.registry.connection import connect
from plmsae.registry.gates import Gate, Gates
from plmsae.registry.promote import promote
from plmsae.registry.versions import aliases_of, list_versions
from tests.registry.server import mlflow_server
from tests.registry.test_promote import NAME, add

ROUNDS, PROMOTERS, VERSIONS = 60, 2, 4
GATES = Gates(at_most={"fidelity": {"fvu": Gate(limit=0.9, tolerance=0.5)}}, at_least={})

# Each line of standard input is a version and the moment (seconds since the epoch) at which to promote it.
_PROMOTER = """
import sys, time
from pathlib import Path
from plmsae.registry.connection import connect
from plmsae.registry.gates import Gates
from plmsae.registry.promote import promote
root, name, gates = Path(sys.argv[1]), sys.argv[2], Gates.model_validate_json(sys.argv[3])
if sys.argv[4] == "unclaimed":
    import contextlib
    from types import SimpleNamespace
    import plmsae.registry.promote as module
    @contextlib.contextmanager
    def nothing(client, name, doing):
        yield SimpleNamespace(client=client, name=name, check=lambda: None)
    module.claimed = nothing
print("ready", flush=True)
for line in sys.stdin:
    version, moment = line.split()
    time.sleep(max(0.0, float(moment) - time.time()))
    print(promote(name, int(version), gates, root, again=True).promoted, flush=True)
"""


@contextmanager
def promoters(root: Path, how: str) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-c", _PROMOTER, str(root), NAME, GATES.model_dump_json(), how]
    started = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROMOTERS)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def at_once(started: Sequence[subprocess.Popen[str]], versions: Sequence[int]) -> list[str]:
    moment = time.time() + 0.05
    for process, version in zip(started, versions):
        assert process.stdin is not None
        process.stdin.write(f"{version} {moment}\n")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in started if process.stdout is not None]


def history(root: Path) -> tuple[dict[str, int], list[dict[str, Any]]]:
    with connect(root) as client:
        tags = client.get_registered_model(NAME).tags
        assert not [key for key in tags if key.startswith("claim.")]
        moved = [item for item in records(tags, "promotion", NAME).values() if item["from_version"] is not None]
        return aliases_of(client, NAME), moved


def broken(aliases: dict[str, int], moved: list[dict[str, Any]]) -> list[str]:
    """What is not as if one promotion had come after the other."""
    found = []
    for before, after in pairwise(moved):
        if after["from_version"] != before["version"]:
            found.append(f"{after['version']} replaced {after['from_version']}, but {before['version']} was champion")
    if moved and (aliases["champion"], aliases["previous"]) != (moved[-1]["version"], moved[-1]["from_version"]):
        found.append(f"the aliases are {aliases}, the last record is {moved[-1]}")
    found += [f"cut off: {item}" for item in moved if not item["done"]]
    return found


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("how", ["claimed", "unclaimed"])
def test_promotions_at_the_same_moment_are_as_if_one_came_after_the_other(
    how: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the claim the same rounds break the history, so this test can fail."""
    database = f"sqlite:///{root}/.plmsae/mlflow/mlflow.db"
    with mlflow_server(tmp_path, database, str(tmp_path / "artifacts"), {}) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        for seed in range(VERSIONS):
            add(root, fvu=0.3, seed=seed)
        with connect(root) as client:
            assert [item.version for item in list_versions(client)] == [1, 2, 3, 4]
        assert promote(NAME, 1, GATES, root).promoted
        with promoters(root, how) as started:
            for number in range(ROUNDS):
                others = [version for version in range(1, VERSIONS + 1) if version != history(root)[0]["champion"]]
                pair = others[number % 3], others[(number + 1) % 3]
                answers = at_once(started, pair)
                aliases, moved = history(root)
                wrong = broken(aliases, moved) + [f"a promoter ended: {answers}" for answer in answers if not answer]
                if how == "unclaimed" and wrong:
                    return
                assert (answers, wrong) == (["True", "True"], [])
                assert len(moved) == 2 * (number + 1)
                assert {item["version"] for item in moved[-2:]} == set(pair)
    assert how == "claimed", "the rounds do not meet: they would prove nothing"
