"""The figure of the comparison with the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.evaluation.bootstrap import Interval
from plmsae.figures import COLORS, GREY, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from plmsae.evaluation.comparison_report import Comparison

_STYLE = {
    "sae": ("SAE", COLORS[0]),
    "pca": ("PCA", COLORS[1]),
    "ica": ("ICA", COLORS[4]),
    "neurons": ("neurons", COLORS[2]),
    "random": ("random", GREY),
}


def draw(comparison: Comparison, f1: Mapping[str, Interval], confidence: float, path: Path) -> None:
    """FVU against active units, mean best F1, and effective concepts per unit.

    Args:
        comparison: What was measured.
        f1: Method -> mean best F1; empty without concepts.
        confidence: Coverage of the intervals.
        path: PNG to write.
    """
    semantic = bool(f1)
    figure, axes = new_figure(1, 3 if semantic else 1, panel=(4.6, 3.7))
    _curves(axes[0], comparison)
    if semantic:
        _bars(axes[1], {name: f1[name] for name in _STYLE}, 3)
        letters = f1["residue"]
        axes[1].axhline(letters.value, color=GREY, linewidth=0.9, linestyle="--")
        axes[1].annotate(
            f"residue letter {letters.value:.3f}", (0.99, letters.value), xycoords=("axes fraction", "data"),
            xytext=(0, 3), textcoords="offset points", fontsize=7.5, color="#222B36", ha="right",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
        axes[1].set_ylabel("mean best F1 on test")
        axes[1].set_title(f"{len(comparison.data.concepts)} concepts; {confidence:.0%} intervals")
        found = {name: each.interval for name, each in comparison.effective.items() if each.interval}
        _bars(axes[2], {name: found[name] for name in _STYLE if name in found}, 2)
        axes[2].axhline(1, color=GREY, linewidth=0.9, linestyle=":")
        axes[2].set_ylabel(f"effective concepts per unit (1 to {len(comparison.class_names)})")
        axes[2].set_title("Fewer is more monosemantic")
    save_figure(figure, path)


def _curves(axes: Axes, comparison: Comparison) -> None:
    for name, (label, color) in _STYLE.items():
        points = []
        own = comparison.reconstruction[f"active:{name}"].value
        for key, each in comparison.reconstruction.items():
            kind, _, rest = key.partition(":")
            method, _, budget = rest.partition(":")
            if kind == "fvu" and method == name and (budget == "all" or float(budget) < own):
                points.append((own if budget == "all" else float(budget), each.value))
        points = sorted(
            point for point in points if point[1] > 1e-6
        )  # an exact reconstruction has no place on a log axis
        axes.plot(*zip(*points), marker="o", markersize=3.5, color=color, label=label)
    leading = [
        (float(key.rpartition(":")[2]), each.value)
        for key, each in comparison.reconstruction.items()
        if key.startswith("fvu:pca_leading:") and each.value > 1e-6
    ]
    axes.plot(*zip(*leading), color=COLORS[1], linestyle="--", linewidth=1.2, label="PCA, leading components")
    axes.axvline(comparison.fitted.k, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("active units per residue")
    axes.set_ylabel("FVU on test residues")
    axes.set_title("Variance left by the largest units")
    axes.legend(loc="lower left")


def _bars(axes: Axes, values: Mapping[str, Interval], digits: int) -> None:
    for place, (name, each) in enumerate(values.items()):
        axes.bar(place, each.value, 0.62, color=_STYLE[name][1])
        errors = [[max(each.value - each.low, 0.0)], [max(each.high - each.value, 0.0)]]
        axes.errorbar(place, each.value, yerr=errors, color="#222B36", elinewidth=1.0, capsize=3)
        axes.annotate(
            f"{each.value:.{digits}f}", (place, max(each.high, each.value)), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axes.set_xticks(range(len(values)), [_STYLE[name][0] for name in values])
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
