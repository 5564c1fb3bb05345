"""SAEs that were trained together, side by side: which one is best, and which no other one beats on L0 and FVU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.errors import DataError
from plmsae.training.tables import write_csv

# Whether more of a score is better.
MORE_IS_BETTER = {"fvu": False, "fidelity": True, "concepts": True}


@dataclass(frozen=True)
class Row:
    """A member of a sweep.

    Attributes:
        name: Its name.
        varied: Its values along the grid, None where its architecture does not take the parameter.
        fvu: Fraction of variance unexplained, on held-out residues.
        l0: Active latents per held-out residue.
        dead_fraction: Latents that never fire there.
        score: What it is chosen by.
        failed: Why it has no numbers; empty if it has.
    """

    name: str
    varied: Mapping[str, Any]
    fvu: float = float("nan")
    l0: float = float("nan")
    dead_fraction: float = float("nan")
    score: float = float("nan")
    failed: str = ""


def best(rows: Sequence[Row], select_by: str) -> Row:
    """The row with the best score; ties go to the sparser one, then to the earlier one.

    Raises:
        DataError: All failed.
    """
    done = [row for row in rows if not row.failed]
    if not done:
        raise DataError("no member of the sweep was trained to its end", where=rows[0].failed if rows else None)
    sign = -1.0 if MORE_IS_BETTER[select_by] else 1.0
    return min(done, key=lambda row: (sign * row.score, row.l0))


def non_dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Per point (x, y), whether no other one has at most its x and y and less of one of them.

    Equal points do not dominate each other.
    """
    return [not any(a <= x and b <= y and (a < x or b < y) for a, b in points) for x, y in points]


def on_front(rows: Sequence[Row]) -> list[bool]:
    """Per row, whether it is on the Pareto front of L0 and FVU; a failed one is not."""
    done = [row for row in rows if not row.failed]
    front = dict(zip((row.name for row in done), non_dominated([(row.l0, row.fvu) for row in done]), strict=True))
    return [front.get(row.name, False) for row in rows]


def write_members(path: Path, rows: Sequence[Row], chosen: str) -> None:
    """Write `members.csv`: one row per member in the order of the grid; a failed one has no numbers."""
    table = []
    for row, front in zip(rows, on_front(rows), strict=True):
        numbers = {name: getattr(row, name) for name in ("l0", "fvu", "dead_fraction", "score")}
        table.append(
            {
                "member": row.name,
                "chosen": int(row.name == chosen),
                "pareto_front": int(front),
                **{name: _cell(value) for name, value in row.varied.items()},
                **(dict.fromkeys(numbers, "") if row.failed else numbers),
                "failed": row.failed,
            }
        )
    write_csv(path, table)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value
