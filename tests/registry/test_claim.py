"""Claims: one at a time among threads on a real database, and what a killed or halted holder leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from plmsae.errors import TryAgainError
from plmsae.registry import claim as claim_module
from plmsae.registry.claim import LEASE_SECONDS, Claim, claimed
from plmsae.registry.connection import connect, locate

NAME = "plmsae.esm_small.layer3.topk"


@pytest.fixture
def client(root: Path) -> Iterator[Any]:
    with connect(root) as connected:
        connected.create_registered_model(NAME)
        yield connected


def claims(client: Any) -> dict[str, dict[str, Any]]:
    tags = client.get_registered_model(NAME).tags
    return {key: json.loads(text) for key, text in tags.items() if key.startswith("claim.")}


def leave(client: Any, **changes: Any) -> str:
    """A claim that nobody holds any more."""
    text = {"number": 1, "beat": 1, "doing": "a promotion", "machine": "elsewhere", "pid": 1, "started": "1", **changes}
    client.set_registered_model_tag(NAME, "claim.0", json.dumps(text))
    return "claim.0"


def test_only_one_of_many_is_inside_and_none_leaves_a_claim(client: Any, root: Path) -> None:
    inside, most, done = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        own = MlflowClient(tracking_uri=locate(root).uri)
        for _ in range(4):
            with claimed(own, NAME, "a test"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.005)
                inside -= 1
            done.append(None)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(done)) == (1, 12)
    assert claims(client) == {}


class Clock:
    """Time that passes by sleeping alone, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now = 0.0
        self.during: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(claim_module, "time", clock)
    return clock


def enter(client: Any, do: Callable[[Claim], None] = lambda claim: None, **settings: float) -> None:
    with claimed(client, NAME, "a test", **settings) as claim:
        do(claim)


def test_an_error_inside_is_not_hidden_and_the_claim_goes(client: Any) -> None:
    seen = []

    def fail(claim: Claim) -> None:
        seen.extend(claims(client).values())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        enter(client, fail)
    assert [claim["doing"] for claim in seen] == ["a test"]
    assert claims(client) == {}


def test_who_is_held_up_for_too_long_says_by_what(client: Any, clock: Clock) -> None:
    leave(client, doing="a rollback")
    with pytest.raises(TryAgainError) as caught:
        enter(client, wait=60.0)
    assert f"another process works on '{NAME}': a rollback" in str(caught.value)
    assert clock.now > 60.0
    assert list(claims(client)) == ["claim.0"]


@pytest.mark.parametrize("text", ['{"number": 0}', '{"number": 1}', "yes"])
def test_a_claim_that_does_not_change_is_removed_after_its_lease_whoever_wrote_it(
    client: Any, clock: Clock, text: str
) -> None:
    client.set_registered_model_tag(NAME, "claim.0", text)
    enter(client)
    assert LEASE_SECONDS < clock.now < LEASE_SECONDS + 2
    assert client.get_registered_model(NAME).tags == {}


def test_a_claim_that_changes_is_alive_however_long_it_takes(client: Any, clock: Clock) -> None:
    leave(client)

    def beat() -> None:
        if int(clock.now) % 60 == 0:
            leave(client, beat=int(clock.now))

    clock.during = beat
    with pytest.raises(TryAgainError, match="another process works on"):
        enter(client, wait=1.5 * LEASE_SECONDS)
    assert list(claims(client)) == ["claim.0"]


def test_who_waits_shows_that_it_is_alive(client: Any, clock: Clock) -> None:
    leave(client)
    beats = set()

    def look() -> None:
        beats.update(claim["beat"] for key, claim in claims(client).items() if key != "claim.0")

    clock.during = look
    enter(client)
    assert len(beats) >= 7


def test_a_holder_that_came_to_a_halt_stops(client: Any, clock: Clock) -> None:
    def halt(claim: Claim) -> None:
        claim.check()
        clock.now += 0.4 * LEASE_SECONDS
        claim.check()
        clock.now += 0.6 * LEASE_SECONDS
        claim.check()

    with pytest.raises(TryAgainError, match="came to a halt"):
        enter(client, halt)
    assert clock.now == LEASE_SECONDS


def test_a_holder_whose_claim_was_removed_stops(client: Any) -> None:
    def lose(claim: Claim) -> None:
        client.delete_registered_model_tag(NAME, claim.key)
        claim.check()

    with pytest.raises(TryAgainError, match="another process may have taken over"):
        enter(client, lose)


_KILLED = """
import os, signal, sys
from pathlib import Path
from plmsae.registry import claim as claim_module
from plmsae.registry.claim import LEASE_SECONDS, Claim, claimed
from plmsae.registry.connection import connect
with connect(Path(sys.argv[1])) as client, claimed(client, sys.argv[2], "a promotion"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long  # test_rollback.py has the same at the end of a whole rollback
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux shows which processes live")
def test_the_claim_of_a_killed_process_is_removed_at_once(client: Any, root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(root), NAME], cwd=root, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len(claims(client)) == 1
    with claimed(client, NAME, "a test", wait=5.0):
        assert [claim["doing"] for claim in claims(client).values()] == ["a test"]
