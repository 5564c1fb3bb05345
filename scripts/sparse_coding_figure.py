"""Draws docs/images/sparse_coding_convergence.png and writes the table of docs/sparse-coding.md.

    python scripts/sparse_coding_figure.py

ISTA and FISTA on random dictionaries, with the two bounds of Beck & Teboulle (2009). Takes about ten seconds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from plmsae.figures import COLORS, new_figure, save_figure
from plmsae.saes.constraints import unit_rows_
from plmsae.saes.sparse_coding import Method, sparse_code

PICTURE = Path("docs/images/sparse_coding_convergence.png")
PAGE = Path("docs/sparse-coding.md")
MARKERS = re.compile(r"(<!-- convergence table: begin -->\n).*?(<!-- convergence table: end -->)", re.DOTALL)
METHODS: tuple[Method, ...] = ("ista", "fista")
NUM_TOKENS, D_MODEL, NUM_ATOMS, NUM_ACTIVE, PENALTY = 16, 64, 256, 8, 0.05
STEPS = 3000
SHARES = (1e-2, 1e-4, 1e-6)


@dataclass(frozen=True)
class Curve:
    """Means over tokens, [STEPS]: F_k - F* and its bound, k = 1, 2, ...; `start` is F(0)."""

    excess: Tensor
    bound: Tensor
    start: float

    def steps_to(self, share: float) -> str:
        """The first k from which F_k - F* stays below a share of F(0)."""
        above = (self.excess > share * self.start).nonzero().flatten()
        first = int(above[-1]) + 2 if len(above) else 1
        return str(first) if first <= STEPS else f"> {STEPS}"


def main() -> None:
    """Write both files."""
    torch.set_num_threads(1)
    problems = {"z >= 0 (the encoder's problem)": True, "z of either sign": False}
    curves = {title: convergence(nonnegative) for title, nonnegative in problems.items()}
    draw(curves)
    rows = ["| problem | method | " + " | ".join(f"{share:.0e} F(0)" for share in SHARES) + " |"]
    rows.append("|---|---|" + "---|" * len(SHARES))
    for title, by_method in curves.items():
        for method, curve in by_method.items():
            steps = " | ".join(curve.steps_to(share) for share in SHARES)
            rows.append(f"| {title} | {method.upper()} | {steps} |")
    text, found = MARKERS.subn(
        lambda match: match[1] + "\n".join(rows) + "\n" + match[2], PAGE.read_text(encoding="utf-8")
    )
    if found != 1:
        raise SystemExit(f"{PAGE} has no place for the table")
    PAGE.write_text(text, encoding="utf-8")
    print("\n".join(rows))


def convergence(nonnegative: bool) -> dict[Method, Curve]:
    """Both methods from z = 0 on the same tokens, beside an optimum of a duality gap below 1e-10."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(NUM_ATOMS, D_MODEL, generator=generator, dtype=torch.float64)
    unit_rows_(atoms)
    x = torch.zeros(NUM_TOKENS, D_MODEL, dtype=torch.float64)
    for row in x:
        active = torch.randperm(NUM_ATOMS, generator=generator)[:NUM_ACTIVE]
        sizes = torch.rand(NUM_ACTIVE, generator=generator, dtype=torch.float64) + 0.5
        if not nonnegative:
            sizes *= torch.randint(2, (NUM_ACTIVE,), generator=generator) * 2 - 1
        row += sizes @ atoms[active]
    x += 0.02 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    best = sparse_code(x, atoms, PENALTY, nonnegative=nonnegative, tolerance=1e-11, max_iterations=100_000)
    best.require_converged()
    if float(best.gap.max()) > 1e-10:
        raise SystemExit(f"the reference optimum has a gap of {float(best.gap.max()):.1e}")
    k = torch.arange(1, STEPS + 1, dtype=torch.float64)
    curves: dict[Method, Curve] = {}
    for method in METHODS:
        run = sparse_code(
            x, atoms, PENALTY, method=method, nonnegative=nonnegative, tolerance=0.0, max_iterations=STEPS,
            keep_history=True,
        )  # fmt: skip
        assert run.history is not None
        excess = (run.history - best.objective).mean(1)
        reach = run.lipschitz * float(best.codes.square().sum(1).mean())
        bound = reach / (2 * k) if method == "ista" else 2 * reach / (k + 1) ** 2
        curves[method] = Curve(excess[1:], bound, float(run.history[0].mean()))
    return curves


def draw(curves: dict[str, dict[Method, Curve]]) -> None:
    """One panel per problem, both axes logarithmic."""
    figure, axes = new_figure(1, len(curves), panel=(4.8, 3.6))
    k = range(1, STEPS + 1)
    formula = {"ista": r"$L\,\|z_0-z^*\|^2 / 2k$", "fista": r"$2L\,\|z_0-z^*\|^2 / (k+1)^2$"}
    for axis, (title, by_method) in zip(axes, curves.items()):
        for color, (method, curve) in zip(COLORS, by_method.items()):
            # Below 1e-10 the reference's own gap is what one would see.
            shown = [value if value > 1e-10 else math.nan for value in curve.excess.tolist()]
            axis.plot(k, shown, color=color, label=method.upper())
            axis.plot(k, curve.bound.tolist(), color=color, ls="--", lw=1.1, label=f"bound {formula[method]}")
        axis.set(xscale="log", yscale="log", title=title, xlabel="iteration k", ylim=(1e-10, 1e3))
    axes[0].set_ylabel("F(z_k) - F*, mean over tokens")
    axes[0].legend(loc="lower left")
    save_figure(figure, PICTURE)


if __name__ == "__main__":
    main()
