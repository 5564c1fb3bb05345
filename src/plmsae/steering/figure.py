"""The figure of a steering run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plmsae.figures import COLORS, GREY, new_figure, save_figure
from plmsae.steering.measure import AMINO_ACIDS, Floats
from plmsae.steering.statistics import Estimate


def draw(found: dict[str, Estimate], random_kl: Floats, latent: int, confidence: float, path: Path) -> None:
    """Change of the amino acids' probabilities, and the size of the effect beside its controls.

    Args:
        found: As `statistics.estimates` gives them.
        random_kl: [n] divergence per residue along each random direction.
        latent: The latent.
        confidence: Coverage of the intervals.
        path: PNG to write.
    """
    figure, (left, right) = new_figure(1, 2, panel=(5.0, 3.4))
    places = np.arange(len(AMINO_ACIDS))
    for offset, name, color, label in (
        (-0.2, "probability", COLORS[0], f"latent {latent}"),
        (0.2, "random_probability", GREY, "random directions"),
    ):
        estimate = found[name]
        errors = np.abs(np.stack([estimate.value - estimate.low, estimate.high - estimate.value]))
        left.bar(places + offset, 100 * estimate.value, 0.38, color=color, label=label)
        left.errorbar(
            places + offset, 100 * estimate.value, yerr=100 * errors, fmt="none", ecolor="#222B36", elinewidth=0.9
        )
    left.axhline(0, color=GREY, linewidth=0.8)
    left.set_xticks(places, list(AMINO_ACIDS))
    left.set_ylabel("change of probability (percentage points)")
    left.set_title(f"Predicted amino acids, {confidence:.0%} intervals over proteins")
    left.grid(axis="x", visible=False)
    left.legend(loc="best")

    kl = found["kl"]
    right.plot(np.sort(random_kl), np.arange(len(random_kl)), "o", color=GREY, label="random directions, same size")
    right.errorbar(
        [float(kl.value)],
        [len(random_kl)],
        xerr=np.abs([[kl.value - kl.low], [kl.high - kl.value]]),
        fmt="D",
        color=COLORS[0],
        capsize=3,
        label=f"latent {latent}",
    )
    right.set_yticks([])
    right.set_xlim(left=0)
    right.set_xlabel("KL from the untouched prediction (nats per residue)")
    right.set_title("Size of the effect")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    save_figure(figure, path)
