"""The figure of the probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.bootstrap import Interval
from plmsae.figures import COLORS, GREY, new_figure, save_figure


def draw(
    table: pd.DataFrame, means: Mapping[tuple[str, str, str, str], Interval], criterion: str, layer: int, path: Path
) -> None:
    """One latent against one neuron class by class, and the mean of every feature set by task.

    Args:
        table: `probe_report.probe_table`.
        means: (score, task, feature set, kind of probe) -> mean over classes.
        criterion: The score that units were chosen by, shown on the left.
        layer: Layer of the SAE.
        path: PNG to write.
    """
    auroc = {key[1:]: mean for key, mean in means.items() if key[0] == "auroc"}
    tasks = list(dict.fromkeys(task for task, _, _ in auroc))
    figure, (left, right) = new_figure(1, 2, panel=(5.4, max(4.4, 0.2 * (len(auroc) + len(tasks)))))
    one = table[table["probe"] == "one unit"].set_index(["task", "class", "features"])[criterion]
    for place, task in enumerate(tasks):
        part = one[task]
        pool = " mean" if ("sae mean") in part.index.get_level_values("features") else ""
        x, y = part.xs(f"neurons{pool}", level="features"), part.xs(f"sae{pool}", level="features")
        color = COLORS[place % len(COLORS)]
        left.scatter(x, y.loc[x.index], s=24, color=color, edgecolor="white", lw=0.5, label=task.replace("_", " "))
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle="--")
    low, high = min(0.0, float(one.min())) - 0.02, max(0.2, float(one.max())) + 0.02
    left.set_xlim(low, high)
    left.set_ylim(low, high)
    left.set_aspect("equal")
    left.set_xlabel(f"best neuron, test {criterion.replace('_', ' ')}")
    left.set_ylabel(f"best SAE latent, test {criterion.replace('_', ' ')}")
    left.set_title(f"Each dot a class (layer {layer})")
    left.legend(loc="best")

    labels: list[str] = []
    for task in tasks:
        for (other, feature, kind), mean in auroc.items():
            if other != task:
                continue
            color = COLORS[0] if feature.startswith("sae") else COLORS[1] if feature.startswith("neurons") else GREY
            marker = "o" if kind == "one unit" else "s"
            error = np.array([[mean.value - mean.low], [mean.high - mean.value]]).clip(0)
            right.errorbar(mean.value, len(labels), xerr=error, color=color, marker=marker, markersize=4.5, lw=1.2)
            first = not labels or not labels[-1]
            labels.append(f"{task.replace('_', ' ')}:  {feature}, {kind}" if first else f"{feature}, {kind}")
        labels.append("")
    right.set_yticks(range(len(labels)), labels, fontsize=6.8)
    right.invert_yaxis()
    right.set_xlabel("mean test AUROC over classes")
    right.set_title("By feature set")
    save_figure(figure, path)
