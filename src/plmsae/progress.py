"""Progress of long work: a bar on a terminal, one structured line per 30 seconds otherwise."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

logger = logging.getLogger("plmsae")
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts units of work; use as a context manager.

    Args:
        label: What is being done, e.g. `extract_activations`.
        total: Number of units in all; None if it is not known.
        unit: Name of the unit, e.g. `residues`.
        done: Units already done by an earlier, interrupted run.
    """

    def __init__(self, label: str, total: int | None, unit: str, done: int = 0) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._start = self._last = time.monotonic()
        self._first = done
        interactive = sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=done, desc=label, unit=f" {unit}", unit_scale=True) if interactive else None
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._line({})

    def update(self, amount: int, **values: float) -> None:
        """Report `amount` more units done and, beside them, named values such as `fvu=0.18`."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(amount)
            if values:
                self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)
        elif time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._line(values)

    def _line(self, values: dict[str, float]) -> None:
        self._last = now = time.monotonic()
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 and self.total is not None else float("inf")
        extra = "".join(f" {name}={value:.4g}" for name, value in values.items())
        eta = f"{int(left // 3600):02d}:{int(left % 3600 // 60):02d}:{int(left % 60):02d}" if left < 360000 else "?"
        total = "?" if self.total is None else self.total
        logger.info(
            "%s done=%d total=%s %s_per_s=%.0f eta=%s%s", self.label, self.done, total, self.unit, rate, eta, extra
        )
