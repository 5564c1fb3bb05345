"""The page of `sweep_report`: a table with a row per pair of a layer and an architecture, and its figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    """A pair of a layer and an architecture.

    Attributes:
        layer: The layer.
        architecture: The architecture.
        member: Name of the best member of its sweep.
        model: `models:/NAME/VERSION` of it; empty if none is registered.
        metrics: Metrics of the version.
    """

    layer: int
    architecture: str
    member: str = ""
    model: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


# What is shown of each pair, of what a version has; a causal model has no masked residues.
_SHOWN = (
    "fidelity.l0",
    "fidelity.fvu",
    "fidelity.masked_loss_recovered_mean",
    "fidelity.causal_loss_recovered_mean",
    "concepts.mean_f1_sae",
    "concepts.mean_f1_neurons",
    "train_sae.dead_fraction",
)


def write_pairs(rows: Sequence[Row], plm: str, output: Path) -> None:
    """Write `pairs.csv`, `figures/pairs.png` where there is something to draw, and `report.html`.

    Args:
        rows: Every pair, in the order of the table.
        plm: Protein language model.
        output: Folder to write into.
    """
    from plmsae.artifacts.atomic import write_text
    from plmsae.registry.headlines import HEADLINES
    from plmsae.registry.page import figures, page, paragraph, section, table

    shown = [name for name in _SHOWN if any(name in row.metrics for row in rows)]
    write_text(output / "pairs.csv", _csv(rows, shown))
    if shown:
        _draw(rows, output / "figures" / "pairs.png")
    header = ["layer", "architecture", "best member", *(HEADLINES[name].short for name in shown), "version"]
    cells = [
        [
            str(row.layer),
            row.architecture,
            row.member or "not registered",
            *(_cell(row, name) for name in shown),
            row.model,
        ]
        for row in rows
    ]
    meanings = [f"{HEADLINES[name].short}: {HEADLINES[name].label}" for name in shown]
    absent = any(not row.model for row in rows)
    parts = [
        section(
            "All pairs",
            table(header, cells, numeric=(0, *range(3, 3 + len(shown))), code=(len(header) - 1,)),
            paragraph(
                "The best of every sweep was chosen on validation proteins; the numbers are of test proteins, brackets "
                "their bootstrap intervals. " + "; ".join(meanings) + ".",
                note=True,
            ),
            paragraph(
                "A pair that is not registered has failed, or its name's candidate is of another sweep by now.",
                note=True,
            )
            if absent
            else "",
        ),
        section("Figure", figures(sorted((output / "figures").glob("*.png")))),
    ]
    layers = len({row.layer for row in rows})
    architectures = len({row.architecture for row in rows})
    lead = f"Sparse autoencoders on {plm}: {layers} layers, {architectures} architectures, the best of each sweep."
    write_text(output / "report.html", page("A sweep over layers and architectures", lead, parts))


def _cell(row: Row, name: str) -> str:
    from plmsae.registry.headlines import HEADLINES

    if name not in row.metrics:
        return ""
    return f"{HEADLINES[name].value(row.metrics, name)} {HEADLINES[name].interval(row.metrics, name)}".strip()


def _csv(rows: Sequence[Row], shown: Sequence[str]) -> str:
    """Empty cells for what is not known."""
    columns = [column for name in shown for column in (name, f"{name}_low", f"{name}_high")]
    columns = [column for column in columns if any(column in row.metrics for row in rows)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", "architecture", "member", "model", *columns])
    for row in rows:
        numbers = [f"{row.metrics[column]:.6g}" if column in row.metrics else "" for column in columns]
        writer.writerow([row.layer, row.architecture, row.member, row.model, *numbers])
    return text.getvalue()


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Concepts and fidelity by layer, and FVU against L0, one colour per architecture."""
    from plmsae.figures import new_figure, save_figure
    from plmsae.registry.headlines import HEADLINES

    recovered = next((name for name in _SHOWN[2:4] if any(name in row.metrics for row in rows)), _SHOWN[2])
    figure, axes = new_figure(1, 3, panel=(4.2, 3.4))
    for place, (name, title) in enumerate({"concepts.mean_f1_sae": "Concepts", recovered: "Fidelity"}.items()):
        _by_layer(axes[place], rows, name)
        axes[place].set_title(f"{title} by layer")
        axes[place].set_ylabel(HEADLINES[name].label + (" (%)" if HEADLINES[name].unit else ""), fontsize=8)
    for architecture in dict.fromkeys(row.architecture for row in rows):
        own = [row for row in rows if row.architecture == architecture and {*_SHOWN[:2]} <= row.metrics.keys()]
        points = [(row.metrics[_SHOWN[0]], row.metrics[_SHOWN[1]]) for row in own]
        axes[2].plot(*zip(*points), "o", label=architecture) if points else axes[2].plot([], [])
        for row, point in zip(own, points, strict=True):
            axes[2].annotate(f" {row.layer}", point, fontsize=7.5)
    axes[2].set_xlabel("L0")
    axes[2].set_title("FVU against L0, by layer")
    axes[2].legend(loc="best")
    save_figure(figure, path)


def _by_layer(axes: Axes, rows: Sequence[Row], name: str) -> None:
    architectures = list(dict.fromkeys(row.architecture for row in rows))
    for place, architecture in enumerate(architectures):
        beside = 0.06 * (place - (len(architectures) - 1) / 2)  # intervals do not cover each other
        own = sorted((row for row in rows if row.architecture == architecture), key=lambda row: row.layer)
        found = [(row.layer, row.metrics) for row in own if name in row.metrics]
        values = [metrics[name] for _, metrics in found]
        below = [value - metrics.get(f"{name}_low", value) for value, (_, metrics) in zip(values, found, strict=True)]
        above = [metrics.get(f"{name}_high", value) - value for value, (_, metrics) in zip(values, found, strict=True)]
        errors = [[max(item, 0.0) for item in side] for side in (below, above)]
        axes.errorbar(
            [layer + beside for layer, _ in found], values, yerr=errors, marker="o", capsize=3, label=architecture
        )
    axes.set_xticks(sorted({row.layer for row in rows}))
    axes.set_xlabel("layer")
