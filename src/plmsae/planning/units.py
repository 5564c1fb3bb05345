"""Numbers for people: counts, bytes and durations with three significant digits."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def number(value: float, unit: str = "") -> str:
    """1,024,000,000 -> `1.02 G`, with a unit `1.02 GFLOP`; below 1,000 without a prefix."""
    magnitude = 0
    while value >= 999.5 and magnitude < len(_PREFIXES) - 1:
        value, magnitude = value / 1000, magnitude + 1
    digits = f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{digits} {_PREFIXES[magnitude]}{unit}".rstrip()


def amount(value: float) -> str:
    """Bytes: 2,500,000,000 -> `2.5 GB`."""
    return number(value, "B")


def duration(seconds: float) -> str:
    """Seconds -> `40 s`, `12 min`, `3.5 h` or `4.2 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
