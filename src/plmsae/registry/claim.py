"""One at a time: whoever moves the aliases of a registered name, or deletes a version of it, holds a claim on the name.

MLflow has neither locks nor compare-and-swap, but its tags are registers that every client reads and writes one by one,
and that is enough for Lamport's bakery algorithm (Lamport 1974, "A new solution of Dijkstra's concurrent programming
problem"). A claim is the tag `claim.<id>` of the registered name with a number, 0 while it is being chosen:

1. write 0; read every claim; write a number above all of them;
2. wait until no other claim is at 0 or has a lower number (equal numbers: the lower id is first);
3. work; remove the claim.

Whoever cannot be seen in step 2 began later, therefore read the number of step 1 and stands behind it. Needed are reads
that see every finished write, which MLflow's databases give, and the right to set and remove tags of the name.

A holder that was killed leaves its claim. It is removed at once by a process that can see that the holder is gone (same
machine), and otherwise when it has not changed for `LEASE_SECONDS` by the clock of the one who waits. A claim that is
alive is written again long before, and a holder that came to a halt for longer than half of that time stops by itself:
no two clocks are compared. What stays possible is a holder whose last request hangs in the network beyond the lease.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.errors import TryAgainError
from plmsae.params import canonical_json

logger = logging.getLogger("plmsae")
PREFIX = "claim."
LEASE_SECONDS = 120.0
WAIT_SECONDS = 300.0
_POLL_SECONDS = (0.05, 1.0)


@dataclass
class Claim:
    """A claim on a registered name; `check` before every write that it protects.

    Attributes:
        client: A connected MLflow client.
        name: Registered name.
        key: Its tag.
        doing: What the holder does, in words.
        lease: Seconds after which others may remove it, if it does not change.
        number: Its place in the line; 0 while it is being chosen.
        exists: Whether it was written.
    """

    client: Any
    name: str
    key: str
    doing: str
    lease: float
    number: int = 0
    exists: bool = False
    _beat: int = 0
    _written: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        """Write it, with a count that shows that it is alive; void if the last time was too long ago."""
        self._check_age()
        self._beat += 1
        before = time.monotonic()
        text = canonical_json({"number": self.number, "beat": self._beat, "doing": self.doing, **_identity()})
        self.client.set_registered_model_tag(self.name, self.key, text)
        self.exists = True
        self._check_age()
        self._written = before

    def check(self) -> None:
        """Make sure that it is held still.

        Raises:
            TryAgainError: It came to a halt for so long that another process may have taken over.
        """
        if self._age() > self.lease / 8:
            self.write()
        if self.key not in self.client.get_registered_model(self.name).tags:
            raise self._lost()
        self._check_age()

    def _age(self) -> float:
        return time.monotonic() - self._written

    def _check_age(self) -> None:
        if self._age() > self.lease / 2:
            raise self._lost()

    def _lost(self) -> TryAgainError:
        return TryAgainError(
            f"{self.doing} of '{self.name}' came to a halt, and another process may have taken over",
            where=f"tag '{self.key}' of the registered name",
            fix="run it again: it finishes what was begun",
        )


@contextmanager
def claimed(
    client: Any, name: str, doing: str, *, lease: float = LEASE_SECONDS, wait: float = WAIT_SECONDS
) -> Iterator[Claim]:
    """Hold the claim on a registered name for the length of the block.

    Args:
        client: A connected MLflow client.
        name: A registered name that exists.
        doing: What for, in words: `promotion`.
        lease: Seconds after which a claim that does not change may be removed.
        wait: Seconds to wait for others.

    Raises:
        TryAgainError: Others hold it for longer than `wait`, or this process came to a halt.
    """
    claim = Claim(client, name, f"{PREFIX}{uuid.uuid4().hex}", doing, lease)
    try:
        claim.write()
        claim.number = 1 + max((_number(text) for text in _others(claim).values()), default=0)
        claim.write()
        _wait_for_turn(claim, wait)
        yield claim
    finally:
        _release(claim)


def _wait_for_turn(claim: Claim, wait: float) -> None:
    seen: dict[str, tuple[str, float]] = {}
    began, pause = time.monotonic(), _POLL_SECONDS[0]
    while ahead := {key: text for key, text in _others(claim).items() if _is_ahead(claim, key, text)}:
        now = time.monotonic()
        for key, text in ahead.items():
            if key not in seen or seen[key][0] != text:
                seen[key] = (text, now)
            if _is_dead(text) or now - seen[key][1] > claim.lease:
                logger.warning("%s of '%s' was cut off; its claim is removed", _holder(text), claim.name)
                _remove(claim, key)
        if now - began > wait:
            raise TryAgainError(
                f"another process works on '{claim.name}': {', '.join(_holder(text) for text in ahead.values())}",
                where=f"tags '{PREFIX}...' of the registered name",
                fix="wait until it has finished, then run it again",
            )
        if claim._age() > claim.lease / 8:
            claim.write()
        time.sleep(pause)
        pause = min(2 * pause, _POLL_SECONDS[1])
    claim.check()


def _others(claim: Claim) -> dict[str, str]:
    tags = claim.client.get_registered_model(claim.name).tags
    return {key: text for key, text in tags.items() if key.startswith(PREFIX) and key != claim.key}


def _is_ahead(claim: Claim, key: str, text: str) -> bool:
    """Whether another claim comes first: a lower number, or 0, which is being chosen and may become one."""
    return (_number(text), key) < (claim.number, claim.key)


def _field(text: str, name: str, kind: Callable[[Any], Any], default: Any) -> Any:
    """A field of a claim; the default of one that somebody edited, which counts as being chosen until it expires."""
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
        return kind(json.loads(text)[name])
    return default


def _number(text: str) -> int:
    return int(_field(text, "number", int, 0))


def _holder(text: str) -> str:
    return str(_field(text, "doing", str, "something"))


def _remove(claim: Claim, key: str) -> None:
    claim.client.delete_registered_model_tag(claim.name, key)


def _release(claim: Claim) -> None:
    """Whatever happens here must not hide what happened in the block: a claim that stays expires."""
    if not claim.exists:
        return
    try:
        _remove(claim, claim.key)
    except Exception as error:
        logger.warning("the claim '%s' on '%s' was not removed and expires by itself: %s", claim.key, claim.name, error)


def _identity() -> dict[str, Any]:
    """The process, as far as others on this machine can look it up; no name of a machine or user."""
    return {"machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _is_dead(text: str) -> bool:
    """Whether the holder is known to have ended: it ran on this machine, where its process is gone."""
    machine = _machine()
    if not machine or _field(text, "machine", str, "") != machine:
        return False
    return bool(_field(text, "started", str, "") != _started(_field(text, "pid", int, 0)))


def _machine() -> str:
    """Names this boot of this machine and this space of process ids; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return sha256_bytes(f"{boot} {Path('/proc/self/ns/pid').readlink()}".encode())[:16]
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none. Ids are used again, this is not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *rest = text.rpartition(")")[2].split()
    return "" if state in "ZX" else rest[18]
