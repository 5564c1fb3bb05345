"""Figures of a training: how it went, how often the latents fire, and how its SAEs compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from plmsae.figures import COLORS, GREY, new_figure, save_figure
from plmsae.training.comparison import Row, on_front
from plmsae.training.metrics import DENSITY_BINS_PER_DECADE


def draw_curves(curves: Sequence[Mapping[str, float]], k: float | None, extra: str, path: Path) -> None:
    """Loss, FVU, L0 and dead latents against training tokens.

    Args:
        curves: Rows of `curves.csv`.
        k: Latents per token that were asked for, drawn beside L0; None if none were.
        extra: What the loss has beside the squared error.
        path: PNG to write.
    """
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure(2, 2, panel=(4.6, 2.8))
    tokens = [row["tokens"] / 1e6 for row in curves]

    def line(panel: int, name: str, label: str, color: str) -> None:
        axes[panel].plot(tokens, [row[name] for row in curves], label=label, color=color)

    line(0, "loss", "total loss", COLORS[0])
    axes[0].set_yscale("log")
    axes[0].set_title("Training loss")
    axes[0].set_ylabel(f"squared error + {extra}\n(unit mean squared norm)")
    line(1, "fvu", "training", COLORS[0])
    line(1, "valid_fvu", "held-out proteins", COLORS[1])
    axes[1].set_yscale("log")
    axes[1].set_title("Fraction of variance unexplained")
    axes[1].set_ylabel("FVU")
    line(2, "l0", "training", COLORS[0])
    line(2, "valid_l0", "held-out proteins", COLORS[1])
    if k is not None:
        axes[2].axhline(k, color=GREY, linewidth=1, linestyle="--", label=f"k = {k:g}")
    highest = max(max(row["l0"], row["valid_l0"]) for row in curves)
    axes[2].set_ylim(0, 1.15 * (k or max(1.0, highest)))
    axes[2].set_title("Active latents per residue")
    axes[2].set_ylabel("L0")
    for name, label, color in (("dead_fraction", "training", 0), ("valid_dead_fraction", "held-out proteins", 1)):
        axes[3].plot(tokens, [100 * row[name] for row in curves], label=label, color=COLORS[color])
    most = max(max(row["dead_fraction"], row["valid_dead_fraction"]) for row in curves)
    axes[3].set_ylim(0, max(10.0, 110 * most))
    axes[3].set_title("Latents that did not fire")
    axes[3].set_ylabel("% of the dictionary")
    for axis in axes[2:]:
        axis.set_xlabel("training tokens (millions)")
    for axis in axes[1:]:
        axis.legend()
    for axis in axes[:2]:
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")  # 0.02, not 2 x 10^-2
        axis.yaxis.set_minor_formatter("{x:g}")
    for axis in axes:
        axis.set_xlim(left=0)
    save_figure(figure, path)


def draw_density(histogram: Sequence[tuple[float, int]], num_silent: int, num_tokens: int, path: Path) -> None:
    """Histogram of log10 firing density.

    Args:
        histogram: (lower edge of log10 density, number of latents).
        num_silent: Latents that fired on no row; they have no place on the axis and are named in the title.
        num_tokens: Rows behind the densities.
        path: PNG to write.
    """
    figure, (axis,) = new_figure(1, 1, panel=(5.6, 3.4))
    width = 1 / DENSITY_BINS_PER_DECADE
    axis.bar([low for low, _ in histogram], [number for _, number in histogram], width=width, align="edge", linewidth=0)
    axis.set_xlim(min(low for low, _ in histogram), 0)
    axis.set_title(f"How often latents fire ({num_tokens:,} held-out residues)")
    axis.set_xlabel("log10 of the share of residues on which a latent fires")
    axis.set_ylabel("latents")
    axis.annotate(f"{num_silent:,} never fire", (0.02, 0.93), xycoords="axes fraction", color=GREY)
    save_figure(figure, path)


def draw_pareto(rows: Sequence[Row], architectures: Mapping[str, str], chosen: str, path: Path) -> None:
    """FVU against L0 of every SAE of a sweep, the front of those that none beats on both, and the chosen one.

    Args:
        rows: The members; failed ones are left out.
        architectures: Name of a member -> its architecture, which is its colour.
        chosen: Name of the best one.
        path: PNG to write.
    """
    figure, (axis,) = new_figure(1, 1, panel=(6.2, 4.0))
    done = [row for row in rows if not row.failed]
    front = sorted((row.l0, row.fvu) for row, on in zip(rows, on_front(rows), strict=True) if on)
    axis.plot([l0 for l0, _ in front], [fvu for _, fvu in front], color=GREY, linewidth=1, zorder=1, label="front")
    for place, architecture in enumerate(dict.fromkeys(architectures[row.name] for row in done)):
        own = [row for row in done if architectures[row.name] == architecture]
        color = COLORS[place % len(COLORS)]
        axis.scatter([row.l0 for row in own], [row.fvu for row in own], s=28, color=color, label=architecture, zorder=2)
    best = next(row for row in done if row.name == chosen)
    axis.scatter(
        [best.l0], [best.fvu], s=130, facecolors="none", edgecolors="black", linewidths=1.4, label="chosen", zorder=3
    )
    axis.annotate(best.name, (best.l0, best.fvu), xytext=(8, 8), textcoords="offset points", fontsize=8)
    axis.set_title("What sparsity costs (held-out proteins)")
    axis.set_xlabel("active latents per residue (L0)")
    axis.set_ylabel("fraction of variance unexplained (FVU)")
    axis.set_xlim(0, 1.1 * max(row.l0 for row in done) or 1.0)
    axis.set_ylim(0, 1.15 * max(row.fvu for row in done) or 1.0)
    axis.legend()
    save_figure(figure, path)
