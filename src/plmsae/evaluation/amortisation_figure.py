"""The figure of the amortisation gap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.token_gaps import TokenGaps
from plmsae.figures import COLORS, GREY, new_figure, save_figure

_BARS = {
    "encoder": ("encoder", COLORS[0]),
    "encoder_refit": ("encoder's atoms,\nrefitted", COLORS[5]),
    "pursuit": ("matching pursuit,\nrefitted", COLORS[2]),
}


def draw(gaps: TokenGaps, found: Mapping[str, Interval], confidence: float, path: Path) -> None:
    """Encoder against optimum token by token, and FVU at equal L0.

    Args:
        gaps: Tokens.
        found: Name -> interval, as `amortisation` computes them.
        confidence: Coverage of the intervals.
        path: PNG to write.
    """
    figure, (left, right) = new_figure(1, 2, panel=(5.0, 3.9))
    optimum, encoder = (gaps.values[f"objective_{name}"].numpy() for name in ("optimum", "encoder"))
    left.scatter(optimum, encoder, s=10, color=COLORS[0], alpha=0.5, edgecolor="none", label="one residue")
    ends = np.array([min(optimum.min(), encoder.min()), max(optimum.max(), encoder.max())])
    left.plot(ends, ends, color=GREY, linewidth=0.9, linestyle="--", label="no gap")
    left.set_xlabel("objective of the optimum")
    left.set_ylabel("objective of the encoder's code")
    left.set_title(f"Equal λ = {gaps.penalty:.3g}: excess {100 * found['excess'].value:.1f} %")
    left.legend(loc="upper left")

    values = [found[f"fvu_{code}"] for code in _BARS]
    for place, (each, (_, color)) in enumerate(zip(values, _BARS.values())):
        right.bar(place, each.value, 0.62, color=color)
        right.errorbar(
            place,
            each.value,
            yerr=[[max(each.value - each.low, 0.0)], [max(each.high - each.value, 0.0)]],
            color="#222B36",
            elinewidth=1.0,
            capsize=3,
        )
        right.annotate(
            f"{each.value:.4f}", (place, max(each.high, each.value)), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    right.set_xticks(range(len(_BARS)), [label for label, _ in _BARS.values()])
    right.set_ylabel("FVU")
    right.set_title(f"Equal L0 = {found['l0_encoder'].value:.1f}; {confidence:.0%} intervals over proteins")
    right.grid(axis="x", visible=False)
    right.margins(y=0.14)
    save_figure(figure, path)
