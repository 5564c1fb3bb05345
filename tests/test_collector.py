"""What `collector.spare` changes of a process, seen in a process of its own."""

from __future__ import annotations

import gc
import subprocess
import sys

from plmsae import cli

CYCLE = """
import gc, sys
from plmsae import collector
class Cycle:
    def __init__(self, name): self.name, self.own = name, self
    def __del__(self): print(self.name, flush=True)
collector.spare()
"""


def output(script: str) -> list[str]:
    command = [sys.executable, "-c", CYCLE + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()


def test_cycles_that_die_young_are_still_freed_and_the_end_searches_nothing() -> None:
    assert output("Cycle('young'); kept = [[] for _ in range(20_000)]; Cycle('left')") == ["young"]


def test_old_objects_are_searched_a_tenth_as_often() -> None:
    grow = "before = gc.get_stats()[2]['collections']; kept = [[] for _ in range(400_000)];"
    count = f"{grow} print(gc.get_stats()[2]['collections'] - before)"
    assert int(output(count)[0]) == 0
    assert int(output(f"gc.set_threshold(700, 10, 10); {count}")[0]) > 0


def test_a_caller_in_python_keeps_its_settings() -> None:
    before = gc.get_threshold()
    assert cli.main(["verify", "nothing-here"]) == 2
    assert gc.get_threshold() == before
