"""The figure of the concept evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plmsae.evaluation.bootstrap import Floats, Interval
from plmsae.figures import COLORS, GREY, new_figure, save_figure

_LABELS = {"sae": "SAE latents", "neurons": "neurons", "residue": "residue letter alone"}
_COLORS = {"sae": COLORS[0], "neurons": COLORS[1], "residue": GREY}
NUM_NAMED = 9


def draw(
    concepts: Sequence[str],
    f1: Mapping[str, Floats],
    beats_letters: NDArray[np.bool_],
    means: Mapping[str, Interval],
    layer: int,
    folder: Path,
) -> None:
    """SAE against neurons concept by concept, and the concepts of each method from best to worst.

    Args:
        concepts: [C] names.
        f1: Method -> [C] test F1.
        beats_letters: [C] the SAE is better than the residue letters beyond the interval.
        means: Method -> mean F1 over concepts.
        layer: Layer of the SAE.
        folder: Gets `concepts.png`.
    """
    figure, (left, right) = new_figure(1, 2, panel=(5.4, 4.6))
    for mask, color, label in (
        (~beats_letters, "#B8C0CA", f"no better than the residue letter ({(~beats_letters).sum()})"),
        (beats_letters, COLORS[0], f"better than the residue letter ({beats_letters.sum()})"),
    ):
        left.scatter(f1["neurons"][mask], f1["sae"][mask], s=22, color=color, edgecolor="white", lw=0.5, label=label)
    left.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle="--")
    # Both axes to the best score of all, so that a weak model's concepts do not crowd in the corner.
    top = min(1.0, 1.1 * float(np.max([f1["neurons"], f1["sae"], [0.2] * len(concepts)])))
    left.set_xlim(-0.02 * top, 1.02 * top)
    left.set_ylim(-0.02 * top, 1.02 * top)
    left.set_aspect("equal")
    left.set_xlabel("best neuron, test F1")
    left.set_ylabel("best SAE latent, test F1")
    left.set_title(f"Each dot a Swiss-Prot concept (layer {layer})")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13))
    _name(left, concepts, f1["neurons"], f1["sae"], beats_letters, top)

    ranks = np.arange(1, len(concepts) + 1)
    for method in ("residue", "neurons", "sae"):
        values = -np.sort(-f1[method])
        label = f"{_LABELS[method]}: mean {means[method].text()}"
        right.step(ranks, values, where="mid", color=_COLORS[method], label=label)
    right.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    highest = max(top, 0.55)  # the line at 0.5 stays in sight
    right.set_ylim(-0.02 * highest, 1.02 * highest)
    right.set_xlabel("concepts, from best to worst for each method")
    right.set_ylabel("test F1")
    right.set_title("Selected on validation, scored on test")
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], loc="upper right")
    save_figure(figure, folder / "concepts.png")


def _name(
    axes: Any, concepts: Sequence[str], x: Floats, y: Floats, beats_letters: NDArray[np.bool_], top: float
) -> None:
    """Name the discoveries that gain most over the neurons; names are spread so that they do not overlap."""
    gain = np.where(beats_letters, y - x, -np.inf)
    chosen = [place for place in np.argsort(-gain, kind="stable")[:NUM_NAMED] if gain[place] > 0]
    chosen.sort(key=lambda place: y[place])
    line = 0.052 * top
    heights: list[float] = []
    for place in chosen:
        heights.append(max(heights[-1] + line if heights else 0.0, float(y[place])))
    for number in range(len(heights) - 1, -1, -1):  # what was pushed above the frame pushes back down
        limit = heights[number + 1] - line if number + 1 < len(heights) else 0.99 * top
        heights[number] = min(heights[number], limit)
    for place, height in zip(chosen, heights, strict=True):
        right_side = x[place] < 0.55 * top
        axes.annotate(
            _short(concepts[place]),
            (x[place], y[place]),
            xytext=(x[place] + (0.035 if right_side else -0.035) * top, height),
            ha="left" if right_side else "right",
            va="center",
            fontsize=7.2,
            color="#222B36",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 2},
        )


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"
