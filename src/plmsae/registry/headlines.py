"""The few numbers that are shown first, wherever a SAE is listed; everything else stays one click away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """How a metric is shown.

    Attributes:
        short: Column title.
        label: What it is, for people who meet it first.
        digits: Decimals.
        unit: Text behind the number.
    """

    short: str
    label: str
    digits: int
    unit: str = ""

    def value(self, metrics: Mapping[str, float], name: str) -> str:
        """For people, e.g. `93.1 %`."""
        return f"{metrics[name]:.{self.digits}f}{self.unit}"

    def interval(self, metrics: Mapping[str, float], name: str) -> str:
        """For people, e.g. `[92.8, 93.4]`; empty where there is none."""
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        if low is None or high is None:
            return ""
        return f"[{low:.{self.digits}f}, {high:.{self.digits}f}]"


HEADLINES = {
    "fidelity.masked_loss_recovered_mean": Headline("RECOVERED", "masked loss recovered, vs mean ablation", 1, " %"),
    "fidelity.causal_loss_recovered_mean": Headline(
        "RECOVERED NEXT", "next-residue loss recovered, vs mean ablation", 1, " %"
    ),
    "fidelity.fvu": Headline("FVU", "fraction of variance unexplained on test residues", 3),
    "fidelity.l0": Headline("L0", "active latents per residue", 1),
    "train_sae.dead_fraction": Headline("DEAD", "share of latents that never fire", 3),
    "concepts.mean_f1_sae": Headline("F1", "mean best F1 of the latents over test concepts", 3),
    "concepts.mean_f1_neurons": Headline("F1 NEURONS", "mean best F1 of the neurons of the layer", 3),
    "concepts.mean_f1_residue": Headline("F1 LETTERS", "mean best F1 of the residue letter alone", 3),
    "concepts.num_concepts_better_than_residue_sae": Headline(
        "DISCOVERED", "concepts found beyond the residue letter", 0
    ),
}


def headline_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """(metric, what it is, value with interval) of the headlines that `metrics` has."""
    return [
        (name, headline.label, f"{headline.value(metrics, name)} {headline.interval(metrics, name)}".strip())
        for name, headline in HEADLINES.items()
        if name in metrics
    ]
