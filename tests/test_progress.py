"""The bar of a terminal and the lines of a log: how much is done, how fast, and how long it takes yet."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

from plmsae.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_say_rate_and_time_left_of_this_run_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 110.0, 131.0, 131.0, 140.0, 140.0, 140.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="plmsae"), Progress("train_sae", 7000, "tokens", done=1000) as bar:
        bar.update(1000, fvu=0.5)  # after 10 seconds: no line yet
        bar.update(2100, saes=20, fvu=0.25)  # after 31 seconds
    lines = [record.getMessage() for record in caplog.records]
    # 3,100 tokens in 31 seconds, 2,900 left. What an earlier run did takes no part in the rate.
    assert lines[0] == "train_sae done=4100 total=7000 tokens_per_s=100 eta=00:00:29 saes=20 fvu=0.25"
    assert len(lines) == 2


def test_the_bar_of_a_terminal_has_rate_time_left_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train_sae", 4000, "tokens", done=1000) as bar:
        time.sleep(0.15)
        bar.update(2000, saes=20)
        assert bar._bar is not None
        bar._bar.refresh()
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"train_sae:\s+75%.*3\.00k/4\.00k \[\d\d:\d\d<\d\d:\d\d, [\d.]+k? tokens/s, saes=20\]", last), last
