"""The history of a version's re-evaluations: a table, a figure over time, and the report of one of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from plmsae.artifacts.atomic import write_text
from plmsae.registry.drift import Drift
from plmsae.registry.page import figures, page, paragraph, section, table
from plmsae.registry.versions import Registered

COLUMNS = (
    "number",
    "at",
    "metric",
    "recorded",
    "now",
    "difference",
    "low",
    "high",
    "tolerance",
    "num_pairs",
    "unit",
    "drifted",
    "causes",
    "data_release",
    "plm_revision",
)


def history_rows(history: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per re-evaluation and metric that was compared in it."""
    rows = []
    for number, record in sorted(history.items()):
        for measured in record["evaluations"].values():
            for drift in measured["drift"]:
                row = {**record["facts"], **drift, "number": number, "at": record["at"]}
                row["causes"] = " ".join(measured["causes"])
                rows.append({column: row.get(column) for column in COLUMNS})
    return rows


def write_history(folder: Path, history: Mapping[int, Mapping[str, Any]]) -> Path:
    """Write `history.csv` and `history.png`; returns the figure."""
    rows = history_rows(history)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "history.csv", buffer.getvalue())
    figure = folder / "history.png"
    draw(rows, figure)
    return figure


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every metric over time: the value with the interval of its difference, and the registered one as a line."""
    import numpy as np

    from plmsae.figures import COLORS, GREY, new_figure, save_figure

    compared = [row for row in rows if row["difference"] is not None]
    names = list(dict.fromkeys(row["metric"] for row in compared))
    figure, axes = new_figure(1, max(len(names), 1), title="Re-evaluations")
    for axis, name in zip(axes, names, strict=False):
        own = [row for row in compared if row["metric"] == name]
        times = np.array([datetime.fromisoformat(row["at"]).replace(tzinfo=None) for row in own], dtype="datetime64[s]")
        axis.plot(times, [row["recorded"] for row in own], color=GREY, linestyle="--", marker="_", label="registered")
        axis.plot(times, [row["now"] for row in own], color=COLORS[0])
        for place, row in enumerate(own):
            when = times[place : place + 1]
            color, marker = (COLORS[1], "X") if row["drifted"] else (COLORS[0], "o")
            if row["low"] is not None and row["high"] is not None:
                bounds = [row["recorded"] + row["low"], row["recorded"] + row["high"]]
                axis.plot(times[[place, place]], bounds, color=color, linewidth=1.2)
            axis.plot(when, [row["now"]], color=color, marker=marker, linestyle="none")
        if any(row["drifted"] for row in own):
            axis.plot([], [], color=COLORS[1], marker="X", linestyle="none", label="drifted")
        axis.set_title(name)
        axis.tick_params(axis="x", rotation=30)
        axis.legend()
    if not names:
        axes[0].text(0.5, 0.5, "nothing was compared", ha="center", va="center", transform=axes[0].transAxes)
    save_figure(figure, path)


def write_report(
    path: Path, version: Registered, record: Mapping[str, Any], now: Sequence[Drift], figure: Path
) -> None:
    """Write the page of one re-evaluation.

    Args:
        path: The HTML file.
        version: What was evaluated.
        record: The record of this re-evaluation.
        now: How every metric stands, those of earlier re-evaluations included.
        figure: The history.
    """
    measured = record["evaluations"]
    why = [
        [evaluation, cause, line]
        for evaluation, each in measured.items()
        for cause, lines in each["causes"].items()
        for line in lines
    ]
    numbers = [
        [
            each.metric,
            _number(each.recorded),
            _number(each.now),
            _number(each.difference),
            "" if each.low is None or each.high is None else f"[{each.low:+.4g}, {each.high:+.4g}]",
            f"{each.tolerance:g}",
            f"{each.num_pairs:,} {each.unit}" if each.num_pairs else f"none: {each.unpaired}",
            "drifted" if each.drifted else ("fine" if each.difference is not None else "not compared"),
        ]
        for each in now
    ]
    header = ["metric", "registered", "now", "difference", "interval", "tolerance", "pairs", "verdict"]
    facts = [[name.replace("_", " "), value] for name, value in record["facts"].items() if value]
    parts = [
        section(
            "Numbers",
            table(header, numbers, numeric=(1, 2, 3, 4, 5)),
            paragraph(
                "Registered and now are the values on what was measured both times, where there are pairs; the "
                "interval is that of the difference. Drifted: worse by more than the tolerance, and zero is outside "
                "the interval.",
                note=True,
            ),
        ),
        section("Why it was evaluated again", table(["evaluation", "cause", "what changed"], why)),
        section("History", figures([figure])),
        section("Of what", table(["", ""], facts, code=(1,))),
    ]
    lead = f"Re-evaluation {record['number']} of {version.uri}, {record['at']}: {record['verdict']}."
    write_text(path, page(version.name, lead, parts))


def write_nothing(folder: Path, uri: str) -> None:
    """Write report and history of a version that was not evaluated again so far."""
    write_history(folder, {})
    write_text(folder / "report.html", page(uri, "Nothing has changed, nothing was evaluated again.", []))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
