"""The figure of the clustering evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.figures import COLORS, GREY, new_figure, save_figure


def draw(table: pd.DataFrame, alpha: float, layer: int, path: Path) -> None:
    """Effect in structure against effect in sequence, of all structural neighbours and of those apart in sequence.

    Where structure was not looked at, the effects in sequence.

    Args:
        table: One row per latent (`clustering_report.latent_table`).
        alpha: Level of the tests.
        layer: Layer of the SAE.
        path: PNG to write.
    """
    if "structure_d" not in table:
        _draw_sequence(table, alpha, layer, path)
        return
    apart = [name.removesuffix("_d") for name in table.columns if name.startswith("apart_") and name.endswith("_d")]
    apart = [name for name in apart if not name.endswith("held_out")]
    panels = ["structure", *apart[-1:]]
    figure, axes = new_figure(1, len(panels), panel=(4.8, 4.2), title=f"Clustering of latents, layer {layer}")
    for axis, name in zip(axes, panels, strict=True):
        above = (table[f"{name}_d"] > 0).to_numpy()
        significant = (table[f"{name}_p_corrected"] < alpha).to_numpy() & above
        clustered = (table[f"{name}_permutation_p_corrected"] < alpha).to_numpy() & above
        only = table["structural_only"].to_numpy(dtype=bool)
        groups = (
            (~significant & ~clustered & ~only, GREY, "not above the null"),
            (significant & ~clustered & ~only, COLORS[5], "t test"),
            (clustered & ~only, COLORS[0], "permutation test"),
            (only, COLORS[1], "structural only"),
        )
        for which, color, label in groups:
            axis.scatter(
                table["sequence_d"][which],
                table[f"{name}_d"][which],
                s=8,
                color=color,
                alpha=0.6,
                edgecolor="none",
                label=f"{label} ({int(which.sum())})",
            )
        values = table[["sequence_d", f"{name}_d"]].to_numpy(dtype=float)
        if np.isfinite(values).any():
            ends = [float(np.nanmin(values)), float(np.nanmax(values))]
            axis.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--")
        axis.axhline(0, color=GREY, linewidth=0.6)
        axis.axvline(0, color=GREY, linewidth=0.6)
        axis.set_xlabel("Cohen's d in sequence")
        axis.set_ylabel("Cohen's d in structure")
        distance = name.removeprefix("apart_")
        axis.set_title("All neighbours in structure" if name == "structure" else f"More than {distance} residues apart")
        axis.legend(loc="upper left", title=f"above the null, corrected p < {alpha:g}", title_fontsize=8)
    save_figure(figure, path)


def _draw_sequence(table: pd.DataFrame, alpha: float, layer: int, path: Path) -> None:
    figure, axes = new_figure(1, 1, panel=(5.4, 4.0), title=f"Clustering of latents, layer {layer}")
    axis = axes[0]
    effects = table["sequence_d"].to_numpy(dtype=float)
    clustered = (table["sequence_permutation_p_corrected"] < alpha).to_numpy() & (effects > 0)
    known = np.isfinite(effects)
    groups = (~clustered & known, clustered & known)
    axis.hist(
        [effects[which] for which in groups],
        bins=40,
        stacked=True,
        color=[GREY, COLORS[0]],
        label=[f"not above the null ({int(groups[0].sum())})", f"permutation test ({int(groups[1].sum())})"],
    )
    axis.axvline(0, color=GREY, linewidth=0.6)
    axis.set_xlabel("Cohen's d in sequence")
    axis.set_ylabel("latents")
    axis.legend(title=f"above the null, corrected p < {alpha:g}", title_fontsize=8)
    save_figure(figure, path)
