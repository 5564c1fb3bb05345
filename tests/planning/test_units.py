"""Numbers for people."""

from __future__ import annotations

import pytest

from plmsae.planning.units import amount, duration, number


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (999.6, "1 k"), (1234, "1.23 k"), (1.024e9, "1.02 G"), (123456, "123 k"),
     (25.6e12, "25.6 T"), (999_600, "1 M"), (4e27, "4000000 Z")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_units_stand_beside_their_prefix() -> None:
    assert number(5, "FLOP") == "5 FLOP"
    assert amount(2.5e9) == "2.5 GB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (1.26, "1.3 s"), (59.6, "60 s"), (119, "119 s"), (150, "2.5 min"), (7300, "2.03 h"), (1e6, "11.6 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
