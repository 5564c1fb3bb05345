"""The tables of docs/scaling.md and its figure, from the numbers of `scripts.scaling_study` alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmsae.errors import UserError
from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.scaling_law import Law, token_law, width_law
from plmsae.figures import COLORS, new_figure, save_figure

PAGE = Path("docs/scaling.md")
FIGURE = Path("docs/images/scaling.png")
UNDETERMINED = 20.0  # a factor of exp(20) in the loss, or an exponent of 20
MARKERS = re.compile(r"(<!-- scaling: begin -->\n).*?(<!-- scaling: end -->)", re.DOTALL)


class Numbers:
    """The SAEs of a study, by what was varied, and the laws that are fitted to them."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.study, self.activations = found["study"], found["activations"]
        self.saes: list[dict[str, float]] = found["saes"]
        self.longest = max(row["tokens"] for row in self.saes)
        self.grid = [row for row in self.saes if row["tokens"] == self.longest]
        self.lengths = [row for row in self.saes if row["k"] == self.study["at"]]
        n, k, fvu = (_columns(self.grid, name) for name in ("width", "k", "fvu"))
        self.width_laws = [width_law(n, k, fvu, floor=floor) for floor in (True, False)]
        n, tokens, fvu = (_columns(self.lengths, name) for name in ("width", "tokens", "fvu"))
        self.token_law = token_law(n, tokens, fvu)

    def of(self, rows: Sequence[Mapping[str, float]], name: str) -> list[int]:
        """The values that a number takes, ascending."""
        return sorted({int(row[name]) for row in rows})

    def at(self, rows: Sequence[Mapping[str, float]], **where: float) -> Mapping[str, float] | None:
        """The one SAE with these values, if it did not diverge."""
        found = [row for row in rows if all(row[name] == value for name, value in where.items())]
        return found[0] if found else None


def render(found: Mapping[str, Any], root: Path) -> None:
    """Write the tables between the marks of the page, and the figure.

    Raises:
        UserError: The page has no marks.
        DataError: Too few SAEs for the laws.
    """
    numbers = Numbers(found)
    page = root / PAGE
    old = page.read_text(encoding="utf-8")
    text, count = MARKERS.subn(lambda match: match[1] + tables(numbers) + match[2], old)
    if count != 1:
        raise UserError("the page has no place for the tables", where=str(page), fix="restore its two marks")
    page.write_text(text, encoding="utf-8")
    draw(numbers, root / FIGURE)


def tables(numbers: Numbers) -> str:
    """Markdown of all tables."""
    study, place = numbers.study, numbers.activations
    widths, active = numbers.of(numbers.grid, "width"), numbers.of(numbers.grid, "k")
    lengths = numbers.of(numbers.lengths, "tokens")
    variance = numbers.grid[0]["nmse"] / numbers.grid[0]["fvu"]

    def cell(row: Mapping[str, float] | None, name: str) -> str:
        if row is None:
            return "diverged"
        return f"{row[name]:.1%}" if name == "dead_fraction" else f"{row[name]:.4f}"

    def table(head: str, columns: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
        return [
            f"| {head} | " + " | ".join(columns) + " |",
            "|---|" + "---|" * len(columns),
            *(f"| {label} | " + " | ".join(cells) + " |" for label, cells in lines),
            "",
        ]

    def grid(name: str) -> list[str]:
        lines = [
            (f"{width:,}", [cell(numbers.at(numbers.grid, width=width, k=k), name) for k in active]) for width in widths
        ]
        return table("width", [f"k = {k}" for k in active], lines)

    by_length = [
        (
            f"{width:,}",
            [cell(numbers.at(numbers.lengths, width=width, tokens=tokens), "fvu") for tokens in lengths],
        )
        for width in widths
    ]
    out = [
        f"`topk` on layer {place['layer']} ({place['hook']}) of {place['plm']}, {place['d_model']} wide; "
        f"{numbers.longest:,} training residues in batches of {study['batch_size']:,} out of {place['train_rows']:,} "
        f"stored ones, seed {study['seed']}, {study['threads']} threads, {study['device']}; measured on "
        f"{study['held_out']:,} residues of held-out proteins.",
        "",
        "FVU, the mean squared error over the variance (over the mean squared norm, which is the loss of the training, "
        f"each would be {variance:.3f} times as large):",
        "",
        *grid("fvu"),
        "Latents that are active on none of these residues:",
        "",
        *grid("dead_fraction"),
        f"FVU at k = {study['at']} after trainings of several lengths, each with its own schedule:",
        "",
        *table("width", [f"{tokens:,}" for tokens in lengths], by_length),
        *_laws(numbers, table, active),
    ]
    return "\n".join(out)


def _laws(numbers: Numbers, table: Callable[..., list[str]], active: Sequence[int]) -> list[str]:
    """What was fitted, and how well it says what it has not seen."""

    def fitted(title: str, laws: Mapping[str, Law], names: Sequence[str]) -> list[str]:
        lines = [
            (label, [*(_parameter(law, name) for name in names), f"{law.error:.1%}", f"{law.left_out_error:.1%}"])
            for label, law in laws.items()
        ]
        return [title, "", *table("", [*names, "error", "left out"], lines)]

    def exponent(law: Law, k: int) -> str:
        return _interval(law.interval(lambda p: p["beta_n"] + p["gamma"] * math.log(k)))

    both = dict(zip(("with a floor", "without"), numbers.width_laws, strict=True))
    by_k = [(label, [exponent(law, k) for k in active]) for label, law in both.items()]
    return [
        *fitted(
            "Gao et al.'s law L(n, k) of width and active latents, fitted to the first table, with 95 % intervals:",
            both,
            ("alpha", "beta_k", "beta_n", "gamma", "zeta", "eta"),
        ),
        "The exponent of the width that follows at each k, beta_n + gamma log k:",
        "",
        *table("", [f"k = {k}" for k in active], by_k),
        *fitted(
            "The law L(n, T) of width and training tokens, fitted to the third table:",
            {f"k = {numbers.study['at']}": numbers.token_law},
            ("a", "b", "c", "d", "g"),
        ),
    ]


def _parameter(law: Law, name: str) -> str:
    return _interval(law.interval(lambda p: p[name])) if name in law.parameters else ""


def _interval(found: Interval) -> str:
    """A parameter of a term that is not needed can be anything."""
    return found.text(2) if found.high - found.low < UNDETERMINED else "undetermined"


def _columns(rows: Sequence[Mapping[str, float]], name: str) -> Any:
    return np.array([row[name] for row in rows], dtype=np.float64)


def draw(numbers: Numbers, path: Path) -> None:
    """FVU over width, over active latents and over tokens, and dead latents; lines are the law with a floor."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, axes = new_figure(2, 2)
    widths, active = numbers.of(numbers.grid, "width"), numbers.of(numbers.grid, "k")
    law = numbers.width_laws[0].parameters
    smooth = np.geomspace(widths[0], widths[-1], 50)
    for color, k in zip(COLORS, active):
        rows = [row for row in numbers.grid if row["k"] == k]
        axes[0].plot(_columns(rows, "width"), _columns(rows, "fvu"), "o", color=color, label=f"k = {k}")
        axes[0].plot(smooth, _law(law, smooth, np.full(50, float(k))), color=color, lw=1.2)
        axes[3].plot(
            _columns(rows, "width"), 100 * _columns(rows, "dead_fraction"), "o-", color=color, label=f"k = {k}"
        )
    smooth = np.geomspace(active[0], active[-1], 50)
    for color, width in zip(COLORS, widths):
        rows = [row for row in numbers.grid if row["width"] == width]
        axes[1].plot(_columns(rows, "k"), _columns(rows, "fvu"), "o", color=color, label=f"{width:,} latents")
        axes[1].plot(smooth, _law(law, np.full(50, float(width)), smooth), color=color, lw=1.2)
        rows = [row for row in numbers.lengths if row["width"] == width]
        axes[2].plot(_columns(rows, "tokens"), _columns(rows, "fvu"), "o-", color=color, label=f"{width:,} latents")
    at = numbers.study["at"]
    axes[0].set(xscale="log", yscale="log", xlabel="latents n", ylabel="FVU", title="Width, and the fitted law")
    axes[1].set(
        xscale="log", yscale="log", xlabel="active latents k", ylabel="FVU", title="Active latents, and the law"
    )
    axes[2].set(xscale="log", yscale="log", xlabel="training tokens", ylabel="FVU", title=f"Tokens, k = {at}")
    axes[3].set(xscale="log", xlabel="latents n", ylabel="% never active", title="Dead latents")
    ticks = {0: widths, 1: active, 2: numbers.of(numbers.lengths, "tokens"), 3: widths}
    for place, axis in enumerate(axes):
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis.set_xticks(
            ticks[place], [f"{value / 1000:.0f}k" if place == 2 else f"{value:,}" for value in ticks[place]]
        )
        axis.xaxis.minorticks_off()
        if place < 3:
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.minorticks_off()
    save_figure(figure, path)


def _law(p: Mapping[str, float], n: Any, k: Any) -> Any:
    log_n, log_k = np.log(n), np.log(k)
    first = np.exp(p["alpha"] + p["beta_k"] * log_k + p["beta_n"] * log_n + p["gamma"] * log_k * log_n)
    return first + np.exp(p["zeta"] + p["eta"] * log_k)
