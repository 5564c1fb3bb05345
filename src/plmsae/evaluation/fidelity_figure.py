"""The figure of the fidelity evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.splice import CLEAN, MEAN, PROTOCOLS, SAE, ZERO
from plmsae.figures import COLORS, GREY, new_figure, save_figure

_STATES = {CLEAN: "untouched", SAE: "SAE", MEAN: "mean", ZERO: "zeros"}
_STATE_COLORS = {CLEAN: GREY, SAE: COLORS[0], MEAN: COLORS[4], ZERO: COLORS[1]}


def draw(found: dict[str, Interval], confidence: float, layer: int, path: Path) -> None:
    """Bars with intervals: cross-entropy of every intervention, and loss recovered.

    Args:
        found: Name -> interval, as `fidelity` computes them.
        confidence: Coverage of the intervals.
        layer: Layer of the SAE.
        path: PNG to write.
    """
    figure, (left, right) = new_figure(1, 2, panel=(5.0, 3.4))
    places = np.arange(len(PROTOCOLS))
    for number, (state, label) in enumerate(_STATES.items()):
        bars = [found[f"{protocol}_token_ce_{state}"] for protocol in PROTOCOLS]
        at = places + (number - 1.5) * 0.2
        _bars(left, at, bars, 0.18, _STATE_COLORS[state], label, "{:.2f}")
    left.set_xticks(places, [f"{protocol} residues" for protocol in PROTOCOLS])
    left.set_ylabel("cross-entropy (nats per residue)")
    left.set_title(f"Hidden state of layer {layer} replaced by")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)

    shown = [(protocol, ablation) for protocol in PROTOCOLS for ablation in (MEAN, ZERO)]
    for number, level in enumerate(("token", "sequence")):
        bars = [found[f"{protocol}_{level}_loss_recovered_{ablation}"] for protocol, ablation in shown]
        at = np.arange(len(shown)) + (number - 0.5) * 0.36
        label = "mean over residues" if level == "token" else "mean over sequences"
        _bars(right, at, bars, 0.34, COLORS[0] if level == "token" else COLORS[5], label, "{:.0f}")
    right.axhline(100, color=GREY, linewidth=0.9, linestyle="--")
    right.set_xticks(range(len(shown)), [f"{protocol}\nvs {_STATES[ablation]}" for protocol, ablation in shown])
    right.set_ylabel("loss recovered (%)")
    right.set_title(f"Not clipped; {confidence:.0%} intervals over proteins")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    for axes in (left, right):
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.14)
    save_figure(figure, path)


def _bars(axes: Any, at: np.ndarray, bars: list[Interval], width: float, color: str, label: str, text: str) -> None:
    """Bars with error bars and the value above each; undefined values leave a gap."""
    values = np.array([bar.value for bar in bars])
    errors = np.array([[bar.value - bar.low, bar.high - bar.value] for bar in bars]).T
    axes.bar(at, values, width, color=color, label=label)
    axes.errorbar(at, values, yerr=np.abs(errors), fmt="none", ecolor="#222B36", elinewidth=1.0, capsize=2)
    for place, value, error in zip(at, values, errors[1], strict=True):
        if np.isfinite(value):
            axes.annotate(
                text.format(value),
                (place, max(value + error, 0)),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
