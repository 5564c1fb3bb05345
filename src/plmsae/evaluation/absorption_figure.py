"""The figure of the absorption evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.bootstrap import Floats
from plmsae.figures import COLORS, GREY, new_figure, save_figure


def draw(
    curve: pd.DataFrame, needed: np.ndarray, shares: Mapping[str, Floats], confidence: float, layer: int, path: Path
) -> None:
    """F1 by number of latents, how many concepts take how many, and absorption against chance.

    Args:
        curve: `latents`, `f1_valid`, `f1_test`, `low`, `high`.
        needed: Latents needed by each concept that is found.
        shares: `rate` and `expected` of each concept.
        confidence: Coverage of the intervals.
        layer: Layer of the SAE.
        path: PNG to write.
    """
    figure, (left, middle, right) = new_figure(1, 3, panel=(3.9, 3.5), title=f"Concepts over latents, layer {layer}")
    left.plot(curve["latents"], curve["f1_valid"], color=GREY, linestyle="--", label="validation (chosen there)")
    left.plot(curve["latents"], curve["f1_test"], color=COLORS[0], marker="o", markersize=4, label="test")
    left.fill_between(curve["latents"], curve["low"], curve["high"], color=COLORS[0], alpha=0.15, linewidth=0)
    left.set_xlabel("latents in the union, at most")
    left.set_ylabel("mean F1 of concepts")
    left.set_title(f"Union of latents; {confidence:.0%} interval")
    left.legend(loc="center right")

    most = int(curve["latents"].max())
    numbers = np.bincount(needed, minlength=most + 1)[1:]
    middle.bar(np.arange(1, most + 1), numbers, color=COLORS[0])
    middle.set_xlabel("latents needed")
    middle.set_ylabel("concepts")
    middle.set_xticks(range(1, most + 1))
    middle.set_title("Splitting")
    middle.grid(axis="x", visible=False)

    right.scatter(shares["expected"], shares["rate"], s=12, color=COLORS[1], alpha=0.7, edgecolor="none")
    end = float(np.nanmax([*shares["rate"], *shares["expected"], 0.01]))
    right.plot([0, end], [0, end], color=GREY, linewidth=0.9, linestyle="--", label="chance")
    right.set_xlabel("expected if independent")
    right.set_ylabel("absorbed share of a concept's residues")
    right.set_title("Absorption")
    right.legend(loc="lower right")
    save_figure(figure, path)
