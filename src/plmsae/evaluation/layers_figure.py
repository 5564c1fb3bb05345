"""The figure of SAEs over the depth of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from plmsae.evaluation.bootstrap import Interval
from plmsae.figures import COLORS, GREY, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(
    table: pd.DataFrame, matches: pd.DataFrame, threshold: float, letters: Interval | None, title: str, path: Path
) -> None:
    """FVU and dead share, loss recovered, concepts, and latents that the layer before has too.

    Args:
        table: One row per layer (`layers.evaluate`).
        matches: One row per layer and threshold; may be empty.
        threshold: The one that is drawn.
        letters: Mean best F1 of the residue letter; None without concepts.
        title: Heading.
        path: PNG to write.
    """
    figure, (fvu, recovered, concepts, matched) = new_figure(2, 2, panel=(4.6, 2.9), title=title)
    _line(fvu, table, "fvu", COLORS[0], "FVU")
    _line(fvu, table, "dead_fraction", COLORS[1], "latents that never fire (share)")
    fvu.set_yscale("symlog", linthresh=1e-3)
    fvu.set_title("Reconstruction")
    _line(recovered, table, "loss_recovered_mean", COLORS[0], "against the mean")
    _line(recovered, table, "loss_recovered_zero", COLORS[4], "against zeros")
    recovered.set_title("Loss recovered (%)")
    _line(concepts, table, "mean_f1", COLORS[2], "mean best F1 on test")
    if letters is not None:
        concepts.axhline(letters.value, color=GREY, linewidth=0.9, linestyle="--", label="residue letter")
    concepts.set_title("Concepts")
    part = matches[matches["threshold"] == threshold] if len(matches) else matches
    _line(matched, part, "of_layer", COLORS[0], f"r of at least {threshold:g}")
    _line(matched, part, "of_layer_null", COLORS[0], "of a permuted dictionary", dashed=True)
    _line(matched, part, "atoms", COLORS[3], f"cosine of atoms of at least {threshold:g}")
    matched.set_title("Latents that the layer before has too (share)")
    for axes in (fvu, recovered, concepts, matched):
        axes.set_xlabel("layer")
        axes.set_xticks(table["layer"].tolist())
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="best")
    save_figure(figure, path)


def _line(axes: Axes, table: pd.DataFrame, name: str, color: str, label: str, *, dashed: bool = False) -> None:
    """A line with intervals; values that are not known leave a gap."""
    if name not in table or not table[name].notna().any():
        return
    x, y = table["layer"].to_numpy(dtype=float), table[name].to_numpy(dtype=float)
    style: dict[str, Any] = {"linestyle": "--", "linewidth": 1.2} if dashed else {"marker": "o", "markersize": 4}
    axes.plot(x, y, color=color, label=label, **style)
    if f"{name}_low" in table:
        low, high = (table[f"{name}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        errors = np.nan_to_num(np.stack([np.maximum(y - low, 0), np.maximum(high - y, 0)]))
        axes.errorbar(x, y, yerr=errors, fmt="none", ecolor=color, elinewidth=1.0, capsize=2)
