"""Tables, metrics, figure and summary of families and activation patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.activation_patterns import CLASSES
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.inputs import Outcome
from plmsae.figures import COLORS, GREY, new_figure, save_figure
from plmsae.saes.config import SaeConfig

FAMILY_COLUMNS = ("family", "f1", "f1_low", "f1_high", "num_members", "specific")


@dataclass(frozen=True)
class FamilyResult:
    """Families of the units of one method.

    Attributes:
        method: `sae` or `neurons`.
        num_units: How many units it has.
        table: `families.family_table` with method, unit names and bounds.
    """

    method: str
    num_units: int
    table: pd.DataFrame


def report(
    latents: pd.DataFrame,
    results: Sequence[FamilyResult],
    num_proteins: int,
    num_families: int,
    source: str,
    variant: str,
    bound: float,
    config: SaeConfig,
    output: Path,
) -> Outcome:
    """Write everything.

    Args:
        latents: Pattern of every latent (`activation_patterns.pattern_table`).
        results: Families by method; `sae` is among them.
        num_proteins: Proteins seen.
        num_families: Families asked about.
        source: Where families come from.
        variant: Whose rules.
        bound: F1 above which a unit is family-specific.
        config: Configuration of the SAE.
        output: Folder to write into.
    """
    by_method = {result.method: result for result in results}
    ours = by_method["sae"].table
    best = ours[ours["best"]].set_index("unit")[list(FAMILY_COLUMNS)]
    best = best.rename(columns={name: f"family_{name}" for name in FAMILY_COLUMNS if name != "family"})
    table = latents.join(best, on="latent")
    table["family_specific"] = table["family_specific"].eq(True)
    table["family_num_members"] = table["family_num_members"].astype("Int64")
    write_table(table, output / "latents")
    write_table(pd.concat([result.table for result in results], ignore_index=True), output / "families")
    counts = latents["pattern"].value_counts()
    patterns = pd.DataFrame({"pattern": CLASSES, "num_latents": [int(counts.get(name, 0)) for name in CLASSES]})
    patterns["share"] = patterns["num_latents"] / len(latents)
    patterns.to_csv(output / "patterns.csv", index=False, float_format="%.6g", lineterminator="\n")
    people = {"pattern": patterns["pattern"], "latents": patterns["num_latents"].map("{:,}".format)}
    readable = pd.DataFrame({**people, "share": patterns["share"].map("{:.1%}".format)})
    readable.to_csv(output / "table.csv", index=False, lineterminator="\n")
    metrics: dict[str, float | int] = {
        "num_latents": len(latents),
        "num_proteins": num_proteins,
        "num_families": num_families,
    }
    for name, number in zip(patterns["pattern"], patterns["num_latents"]):
        metrics[f"num_{name.replace(' ', '_')}"] = int(number)
    for result in results:
        chosen = result.table[result.table["best"]]
        metrics[f"num_family_specific_{result.method}"] = int(chosen["specific"].sum())
        metrics[f"share_family_specific_{result.method}"] = float(chosen["specific"].sum() / result.num_units)
        metrics[f"num_family_specific_any_{result.method}"] = int(
            result.table.loc[result.table["f1"] > bound, "unit"].nunique()
        )
        metrics[f"num_family_specific_beyond_interval_{result.method}"] = int((chosen["f1_low"] > bound).sum())
        metrics[f"num_families_found_{result.method}"] = int(chosen.loc[chosen["specific"], "family"].nunique())
    _draw(patterns, results, bound, config.layer, output / "figures" / "patterns.png")
    return Outcome(metrics, _summary(metrics, patterns, source, variant, bound, config))


def _draw(patterns: pd.DataFrame, results: Sequence[FamilyResult], bound: float, layer: int, path: Path) -> None:
    figure, (left, right) = new_figure(1, 2, panel=(5.0, 3.8))
    places = np.arange(len(patterns))
    left.barh(places, patterns["num_latents"], color=COLORS[0])
    left.set_yticks(places, patterns["pattern"])
    left.invert_yaxis()
    for place, number in enumerate(patterns["num_latents"]):
        left.text(number, place, f" {number:,}", va="center", fontsize=8, color="#222B36")
    left.margins(x=0.15)
    left.set_xlabel("latents")
    left.set_title(f"Activation patterns (layer {layer})")
    edges = np.linspace(0, 1, 21)
    for result, color in zip(results, COLORS):
        f1 = result.table.loc[result.table["best"], "f1"].to_numpy()
        share = np.histogram(f1, edges)[0] / result.num_units
        right.stairs(share, edges, color=color, linewidth=1.6, label=f"{result.method} ({len(f1):,} with a family)")
    right.axvline(bound, color=GREY, linewidth=0.9, linestyle="--")
    right.set_xlabel("F1 for the family of the top protein, second half")
    right.set_ylabel("share of units")
    right.set_title("Family-specific units")
    right.legend(loc="upper right")
    save_figure(figure, path)


def _summary(
    metrics: dict[str, float | int],
    patterns: pd.DataFrame,
    source: str,
    variant: str,
    bound: float,
    config: SaeConfig,
) -> str:
    some = ", ".join(
        f"{name} {number:,} ({share:.1%})"
        for name, number, share in zip(patterns["pattern"], patterns["num_latents"], patterns["share"])
        if number
    )
    return (
        f"On {metrics['num_proteins']:,} held-out proteins the {metrics['num_latents']:,} latents of layer "
        f"{config.layer} are: {some} (rules of InterProt, variant {variant}). {metrics['num_family_specific_sae']:,} "
        f"latents ({metrics['share_family_specific_sae']:.1%}) and {metrics['num_family_specific_neurons']:,} neurons "
        f"({metrics['share_family_specific_neurons']:.1%}) select one of {metrics['num_families']:,} families "
        f"({source}) with F1 above {bound} on proteins that the threshold was not chosen on; for "
        f"{metrics['num_family_specific_beyond_interval_sae']:,} latents the whole interval is above. Latents find "
        f"{metrics['num_families_found_sae']:,} different families, neurons "
        f"{metrics['num_families_found_neurons']:,}."
    )
