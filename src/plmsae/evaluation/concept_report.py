"""Tables, metrics and summary of the concept evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.average_precision import AveragePrecision
from plmsae.evaluation.bootstrap import Floats, Interval, percentile_bounds
from plmsae.evaluation.concept_compare import (
    Difference,
    Resampling,
    Tested,
    bounds,
    difference,
    mean_interval,
    mean_over_concepts,
)
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_figure import draw
from plmsae.evaluation.inputs import Outcome
from plmsae.evaluation.scores import NO_LATENT, Pairs, Scores
from plmsae.saes.config import SaeConfig

HALF = 0.5
LATENT_COLUMNS = ("latent", "rank", "concept", "threshold", "f1_valid", "f1_test", "f1_residue")


@dataclass(frozen=True)
class MethodResult:
    """The selected predictor of every concept, and how it did.

    Attributes:
        name: `sae`, `neurons` or `residue`.
        units: [C] the predictor for people, e.g. `latent 17` or `letters KR`; empty for none.
        latents: [C] number of the unit, `NO_LATENT` for none.
        thresholds: [C] its threshold, NaN for none.
        f1_valid: [C] F1 that it was selected by.
        tested: Test scores.
        pairs: Pairs of concept and unit above 0.5 on both splits, for methods that have units.
        average_precision: On test, where it was asked for.
    """

    name: str
    units: tuple[str, ...]
    latents: NDArray[np.int64]
    thresholds: Floats
    f1_valid: Floats
    tested: Tested
    pairs: Pairs | None
    average_precision: AveragePrecision | None = None

    def concepts(self, which: slice) -> MethodResult:
        """Only some of the concepts; `pairs`, which are of all of them, are left out."""
        scores, area = self.tested.scores, self.average_precision
        return MethodResult(
            name=self.name,
            units=self.units[which],
            latents=self.latents[which],
            thresholds=self.thresholds[which],
            f1_valid=self.f1_valid[which],
            tested=Tested(
                Scores(scores.precision[which], scores.recall[which], scores.f1[which]), self.tested.samples[:, which]
            ),
            pairs=None,
            average_precision=area and AveragePrecision(area.values[which], area.samples[:, which]),
        )


def report(
    data: ConceptData,
    results: Sequence[MethodResult],
    best: Mapping[str, NDArray[Any]],
    thresholds: Sequence[float],
    how: Resampling,
    config: SaeConfig,
    output: Path,
) -> Outcome:
    """Write everything.

    Args:
        data: Concepts and splits.
        results: Methods; the names `sae`, `neurons` and `residue` are among them.
        best: Best concepts of every latent (`scores.best_concepts`).
        thresholds: The thresholds that indices point at.
        how: How intervals were made.
        config: Configuration of the SAE.
        output: Folder to write into.
    """
    by_name = {result.name: result for result in results}
    letters = by_name["residue"].tested
    over_letters = {r.name: difference(r.tested, letters, how.confidence) for r in results if r.name != "residue"}
    over_neurons = difference(by_name["sae"].tested, by_name["neurons"].tested, how.confidence)
    table = concept_table(data, results, over_letters, how)
    write_table(table, output / "concepts")
    latents = pd.DataFrame(best)
    latents["threshold"] = np.asarray(thresholds)[latents["threshold"]]
    latents["f1_residue"] = letters.scores.f1[latents["concept"]]
    latents["concept"] = data.table["concept"].to_numpy()[latents["concept"]]
    write_table(latents[list(LATENT_COLUMNS)], output / "latents")
    means = {result.name: mean_interval(result.tested, how.confidence) for result in results}
    f1 = {result.name: result.tested.scores.f1 for result in results}
    ranks = pd.DataFrame({"rank": np.arange(1, len(data.concepts) + 1)} | {k: -np.sort(-v) for k, v in f1.items()})
    ranks.to_csv(output / "f1_by_rank.csv", index=False, float_format="%.6g", lineterminator="\n")
    draw(data.table["concept"].tolist(), f1, over_letters["sae"].low > 0, means, config.layer, output / "figures")
    metrics = concept_metrics(data, results, over_letters, over_neurons, means, how.confidence)
    return Outcome(metrics, _summary(metrics, means, over_neurons, over_letters["sae"], config, how.confidence))


def nothing_to_score(data: ConceptData, output: Path, min_instances: int, min_proteins: int) -> Outcome:
    """The result where no concept is frequent enough, e.g. for sequences without annotations."""
    write_table(pd.DataFrame(columns=["concept", "method"]), output / "concepts")
    write_table(pd.DataFrame(columns=list(LATENT_COLUMNS)), output / "latents")
    pd.DataFrame(columns=["rank", "sae", "neurons", "residue"]).to_csv(output / "f1_by_rank.csv", index=False)
    summary = (
        f"No concept could be evaluated: none of the {len(data.left_out):,} that occur has {min_instances} annotations "
        f"in {min_proteins} proteins of both the validation and the test split. Sequences without annotations (FASTA) "
        "have none; more proteins or a lower `min_instances` may help."
    )
    return Outcome({"num_concepts": 0, "num_concepts_left_out": len(data.left_out)}, summary)


def write_table(table: pd.DataFrame, stem: Path) -> None:
    """Write a table as Parquet and as CSV."""
    table.to_parquet(stem.with_suffix(".parquet"), index=False)
    table.to_csv(stem.with_suffix(".csv"), index=False, float_format="%.6g", lineterminator="\n")


def concept_table(
    data: ConceptData, results: Sequence[MethodResult], over_letters: Mapping[str, Difference], how: Resampling
) -> pd.DataFrame:
    """One row per concept and method; concepts in order of name."""
    letters = next(result for result in results if result.name == "residue").tested.scores.f1
    tables = []
    for order, result in enumerate(results):
        scores = result.tested.scores
        low, high = bounds(result.tested, how.confidence)
        ranked = {}
        if (area := result.average_precision) is not None:
            auprc_low, auprc_high = percentile_bounds(area.samples, how.confidence)
            ranked = {"auprc": area.values, "auprc_low": auprc_low, "auprc_high": auprc_high}
            ranked["prevalence"] = data.table["num_residues_test"].to_numpy() / data.test.labels.num_residues
        beats = over_letters[result.name].low > 0 if result.name in over_letters else np.zeros(len(letters), bool)
        latents = pd.Series(result.latents, dtype="Int64").mask(result.latents == NO_LATENT)
        tables.append(
            data.table[["concept", "type", "subtype", "recall_over"]].assign(
                method=result.name,
                unit=list(result.units),
                latent=latents,
                threshold=result.thresholds,
                f1_valid=result.f1_valid,
                f1_test=scores.f1,
                ci_low=low,
                ci_high=high,
                precision=scores.precision,
                recall=scores.recall,
                f1_residue=letters,
                beats_residue=beats,
                **ranked,
                **{name: data.table[name] for name in data.table.columns if name.startswith("num_")},
                order=order,
            )
        )
    table = pd.concat(tables, ignore_index=True)
    return table.sort_values(["concept", "order"], kind="stable").drop(columns="order").reset_index(drop=True)


def concept_metrics(
    data: ConceptData,
    results: Sequence[MethodResult],
    over_letters: Mapping[str, Difference],
    over_neurons: Difference,
    means: Mapping[str, Interval],
    confidence: float,
) -> dict[str, float | int]:
    """The numbers of `metrics.json`.

    Args:
        data: Concepts and splits.
        results: Methods.
        over_letters: Method -> its gain over the letters.
        over_neurons: The SAE's gain over the neurons.
        means: Method -> mean F1 over concepts.
        confidence: Coverage of the intervals.
    """
    metrics: dict[str, float | int] = {
        **data.sizes(),
        "num_concepts_better_than_neurons": int((over_neurons.low > 0).sum()),
        "num_concepts_worse_than_neurons": int((over_neurons.high < 0).sum()),
    }

    def put(name: str, interval: Interval) -> None:
        metrics[name] = interval.value
        metrics[f"{name}_low"], metrics[f"{name}_high"] = interval.low, interval.high

    put("f1_gain_over_neurons", over_neurons.mean)
    put("f1_gain_over_residue", over_letters["sae"].mean)
    for result in results:
        put(f"mean_f1_{result.name}", means[result.name])
        if (area := result.average_precision) is not None:
            put(f"mean_auprc_{result.name}", mean_over_concepts(area.values, area.samples, confidence))
        metrics[f"num_concepts_above_half_{result.name}"] = int((result.tested.scores.f1 > HALF).sum())
        if result.pairs is not None:
            metrics[f"num_pairs_above_half_{result.name}"] = result.pairs.num_pairs
            metrics[f"num_units_above_half_{result.name}"] = result.pairs.num_latents
        if result.name in over_letters:
            beaten = over_letters[result.name].low > 0
            metrics[f"num_concepts_better_than_residue_{result.name}"] = int(beaten.sum())
    return metrics


def _summary(
    metrics: Mapping[str, float | int],
    means: Mapping[str, Interval],
    over_neurons: Difference,
    over_letters: Difference,
    config: SaeConfig,
    confidence: float,
) -> str:
    num_concepts = metrics["num_concepts"]
    return (
        f"On {metrics['num_proteins_test']:,} test proteins ({metrics['num_residues_test']:,} residues; selection on "
        f"{metrics['num_proteins_valid']:,} validation proteins) and {num_concepts} Swiss-Prot concepts "
        f"({metrics['num_concepts_left_out']} others are too rare or duplicates), the mean best F1 is "
        f"{means['sae'].text()} for the SAE's latents, {means['neurons'].text()} for the neurons of layer "
        f"{config.layer} and {means['residue'].text()} for the residue's letter alone. "
        f"{_verdict('the neurons', over_neurons.mean)}; concept by concept it is better beyond the interval "
        f"{metrics['num_concepts_better_than_neurons']} times and worse {metrics['num_concepts_worse_than_neurons']} "
        "times. "
        f"{_verdict('the residue letter', over_letters.mean)}; it is better than every set of letters beyond the "
        f"interval on {metrics['num_concepts_better_than_residue_sae']} of {num_concepts} concepts, and only those are "
        f"discoveries. Concepts with a test F1 above 0.5: SAE {metrics['num_concepts_above_half_sae']}, neurons "
        f"{metrics['num_concepts_above_half_neurons']}, letters {metrics['num_concepts_above_half_residue']}. "
        f"{_areas(metrics)}"
        f"Brackets: {confidence:.0%} bootstrap intervals over test proteins."
    )


def _areas(metrics: Mapping[str, float | int]) -> str:
    """Mean AUPRC of the methods that have one."""
    names = {"sae": "SAE", "neurons": "neurons", "residue": "letters, ranked"}
    found = [f"{text} {metrics[key]:.3f}" for name, text in names.items() if (key := f"mean_auprc_{name}") in metrics]
    return f"Mean area under the precision-recall curve of the same units: {', '.join(found)}. " if found else ""


def _verdict(other: str, gain: Interval) -> str:
    text = f"by {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    if gain.low > 0:
        return f"On average the SAE beats {other} ({text})"
    if gain.high < 0:
        return f"On average the SAE is worse than {other} ({text})"
    return f"On average the SAE does not differ from {other} beyond the interval ({text})"
