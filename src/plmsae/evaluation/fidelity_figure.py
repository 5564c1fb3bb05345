"""The figures of the fidelity evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.protocols import AMINO_ACIDS, CAUSAL, MASKED, SINGLE, UNMASKED
from plmsae.evaluation.splice import CLEAN, MEAN, RANDOM, SAE, ZERO
from plmsae.figures import COLORS, GREY, new_figure, save_figure

_STATES = {CLEAN: "untouched", RANDOM: "random error", SAE: "SAE", MEAN: "mean", ZERO: "zeros"}
_STATE_COLORS = {CLEAN: GREY, RANDOM: COLORS[5], SAE: COLORS[0], MEAN: COLORS[4], ZERO: COLORS[1]}
_LABELS = {
    MASKED: "masked residues",
    SINGLE: "one masked at a time",
    UNMASKED: "unmasked residues",
    CAUSAL: "next residues",
}


def draw(found: dict[str, Interval], protocols: tuple[str, ...], confidence: float, layer: int, path: Path) -> None:
    """Bars with intervals: cross-entropy of every intervention, and loss recovered.

    Args:
        found: Name -> interval, as `fidelity` computes them.
        protocols: Protocols that were measured.
        confidence: Coverage of the intervals.
        layer: Layer of the SAE.
        path: PNG to write.
    """
    figure, (left, right) = new_figure(1, 2, panel=(max(5.0, 2.3 * len(protocols)), 3.4))
    places = np.arange(len(protocols))
    for number, (state, label) in enumerate(_STATES.items()):
        bars = [found[f"{protocol}_token_ce_{state}"] for protocol in protocols]
        at = places + (number - 2) * 0.17
        _bars(left, at, bars, 0.16, _STATE_COLORS[state], label, "{:.2f}")
    left.set_xticks(places, [_LABELS[protocol] for protocol in protocols])
    left.set_ylabel("cross-entropy (nats per residue)")
    left.set_title(f"Hidden state of layer {layer} replaced by")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=5, columnspacing=1.0)

    shown = [(protocol, ablation) for protocol in protocols for ablation in (MEAN, ZERO)]
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


def draw_amino_acids(table: pd.DataFrame, protocol: str, confidence: float, path: Path) -> None:
    """Bars with intervals: what the SAE and a random error of the same length cost each amino acid.

    Args:
        table: As `fidelity_letters.by_amino_acid` makes it.
        protocol: The protocol that is shown.
        confidence: Coverage of the intervals.
        path: PNG to write.
    """
    figure, (axes,) = new_figure(1, 1, panel=(8.0, 3.2))
    rows = table[table["protocol"] == protocol].set_index(["quantity", "amino_acid"])
    for number, state in enumerate((SAE, RANDOM)):
        found = rows.loc[f"delta_ce_{state}"].loc[list(AMINO_ACIDS)]
        bars = [Interval(*values) for values in found[["value", "low", "high"]].to_numpy()]
        at = np.arange(len(AMINO_ACIDS)) + (number - 0.5) * 0.4
        _bars(axes, at, bars, 0.38, _STATE_COLORS[state], _STATES[state], None)
    axes.axhline(0, color=GREY, linewidth=0.9)
    axes.set_xticks(range(len(AMINO_ACIDS)), list(AMINO_ACIDS))
    axes.set_ylabel("increase of cross-entropy (nats)")
    axes.set_title(f"By amino acid, {_LABELS[protocol]}; {confidence:.0%} intervals over proteins")
    axes.legend()
    axes.grid(axis="x", visible=False)
    save_figure(figure, path)


def _bars(
    axes: Any, at: np.ndarray, bars: list[Interval], width: float, color: str, label: str, text: str | None
) -> None:
    """Bars with error bars and, with a format for it, the value above each; undefined values leave a gap."""
    values = np.array([bar.value for bar in bars])
    errors = np.array([[bar.value - bar.low, bar.high - bar.value] for bar in bars]).T
    axes.bar(at, values, width, color=color, label=label)
    axes.errorbar(at, values, yerr=np.abs(errors), fmt="none", ecolor="#222B36", elinewidth=1.0, capsize=2)
    for place, value, error in zip(at, values, errors[1], strict=True):
        if text is not None and np.isfinite(value):
            axes.annotate(
                text.format(value),
                (place, max(value + error, 0)),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
