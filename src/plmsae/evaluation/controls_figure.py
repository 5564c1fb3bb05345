"""The figure of the SAE beside its controls and the other baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.figures import COLORS, GREY, new_figure, save_figure

_COLORS = {"sae": COLORS[0], "control": COLORS[4], "baseline": COLORS[5]}
_NAMES = {"sae": "SAE", "pca": "PCA", "ica": "ICA", "random": "random\natoms", "neurons": "neurons"}


def draw(table: pd.DataFrame, num_concepts: int, confidence: float, path: Path) -> None:
    """Mean best F1 and FVU of every method; the residue letter as a line.

    Args:
        table: Rows of `controls.evaluate`.
        num_concepts: Concepts that F1 is the mean of.
        confidence: Coverage of the intervals.
        path: PNG to write.
    """
    shown = [name for name in ("mean_f1", "fvu") if table[name].notna().any()]
    figure, panels = new_figure(1, max(len(shown), 1), panel=(5.4, 3.6))
    titles = {
        "mean_f1": f"Concepts: {num_concepts}; {confidence:.0%} intervals",
        "fvu": "Reconstruction",
    }
    labels = {"mean_f1": "mean best F1 on test", "fvu": "FVU on test residues"}
    for axes, name in zip(panels, shown, strict=False):
        rows = table[table[name].notna() & (table["kind"] != "letters")]
        if name == "fvu":
            rows = rows[rows[name] > 0]  # an exact reconstruction has no place on a log axis
            axes.set_yscale("log")
        for place, (_, row) in enumerate(rows.iterrows()):
            value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
            errors = np.nan_to_num([[max(value - low, 0.0)], [max(high - value, 0.0)]])
            color = _COLORS[row["kind"]]
            if name == "fvu":
                axes.errorbar(place, value, yerr=errors, fmt="o", color=color, ecolor="#222B36", capsize=3)
            else:
                axes.bar(place, value, 0.62, color=color)
                axes.errorbar(place, value, yerr=errors, color="#222B36", elinewidth=1.0, capsize=3)
            axes.annotate(
                f"{value:.3f}" if name == "mean_f1" else f"{value:.3g}",
                (place, value + errors[1, 0]),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        names = [_NAMES.get(method, method.replace("_", "\n")) for method in rows["method"]]
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.07, y=0.14)
        axes.set_ylabel(labels[name])
        axes.set_title(titles[name])
        letters = table[(table["kind"] == "letters") & table[name].notna()]
        for _, row in letters.iterrows():
            axes.axhline(row[name], color=GREY, linewidth=0.9, linestyle="--", label=f"residue letter {row[name]:.3f}")
            axes.legend(loc="upper right")
    save_figure(figure, path)
