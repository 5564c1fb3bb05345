"""Tables, metrics, figure and summary of the absorption evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.absorption_figure import draw
from plmsae.evaluation.bootstrap import Floats, Interval, percentile_bounds, resampled_sums
from plmsae.evaluation.concept_compare import Resampling, Tested, bounds, difference, mean_interval
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_patterns import BitPredictors, Ints
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.concept_spread import Absorber, SpreadRules, Union, absorption
from plmsae.evaluation.counts import Counts
from plmsae.evaluation.inputs import Outcome
from plmsae.evaluation.scores import Scores
from plmsae.saes.config import SaeConfig

_SHARES = ("silent", "rate", "expected", "excess")


@dataclass(frozen=True)
class Spread:
    """What was found of C concepts.

    Attributes:
        predictors: Their candidate latents.
        unions: [C] greedy unions.
        absorbers: [C] absorbers.
        tested: [max_latents] test scores of the unions of the first 1, 2, ... latents.
        sums: [P, 4, C] counts of absorption per test protein (`concept_spread.absorption_counts`).
    """

    predictors: BitPredictors
    unions: Sequence[Union]
    absorbers: Sequence[Sequence[Absorber]]
    tested: Sequence[Tested]
    sums: Ints


def report(
    data: ConceptData,
    spread: Spread,
    counts: Counts,
    thresholds: Sequence[float],
    rules: SpreadRules,
    how: Resampling,
    config: SaeConfig,
    output: Path,
) -> Outcome:
    """Write `concepts`, `unions`, `absorbers`, `curve.csv` and the figure.

    Args:
        data: Concepts and splits.
        spread: What was found.
        counts: Validation counts of all latents, for the names of sub-classes.
        thresholds: The thresholds that indices point at.
        rules: Rules.
        how: How intervals are made.
        config: Configuration of the SAE.
        output: Folder to write into.
    """
    needed = np.array([union.needed for union in spread.unions])
    found = needed > 0
    enough = _at(spread.tested, np.maximum(needed, 1) - 1)
    gain = difference(enough, spread.tested[0], how.confidence)
    shares = absorption(spread.sums.sum(axis=0))
    samples = absorption(resampled_sums(spread.sums, how.num_resamples, how.seed))
    limits = {name: percentile_bounds(samples[name], how.confidence) for name in _SHARES}
    table = _concepts(data, spread, thresholds, enough, gain.low, gain.high, shares, limits, how)
    write_table(table, output / "concepts")
    write_table(_unions(data, spread, thresholds), output / "unions")
    named = _absorbers(data, spread, counts, thresholds, rules)
    write_table(named, output / "absorbers")
    curve = _curve(spread, how)
    curve.to_csv(output / "curve.csv", index=False, float_format="%.6g", lineterminator="\n")
    _readable(curve).to_csv(output / "table.csv", index=False, lineterminator="\n")
    draw(curve, needed[found], shares, how.confidence, config.layer, output / "figures" / "absorption.png")
    beyond = np.nan_to_num(limits["excess"][0], nan=-1.0) > 0
    metrics: dict[str, float | int] = {
        **data.sizes(),
        "num_concepts_found": int(found.sum()),
        "mean_latents_needed": float(needed[found].mean()) if found.any() else 0.0,
        "num_concepts_split": int((needed > 1).sum()),
        "num_concepts_split_confirmed": int(((needed > 1) & (gain.low > 0)).sum()),
        "num_concepts_with_absorbers": sum(bool(each) for each in spread.absorbers),
        "num_concepts_absorbed": int(beyond.sum()),
        "num_absorbers": len(named),
        "num_absorbers_of_a_named_subclass": int((named["subclass"] != "").sum()),
    }
    for name, interval in (
        ("mean_f1_one_latent", mean_interval(spread.tested[0], how.confidence)),
        ("mean_f1_latents_needed", mean_interval(enough, how.confidence)),
        ("f1_gain", gain.mean),
        *((f"mean_absorption_{each}", _mean(shares[each], samples[each], how)) for each in _SHARES),
    ):
        metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = interval.value, interval.low, interval.high
    return Outcome(metrics, _summary(metrics, rules, how))


def nothing_to_score(data: ConceptData, output: Path, min_instances: int, min_proteins: int) -> Outcome:
    """The result where no concept is frequent enough."""
    for name in ("concepts", "unions", "absorbers"):
        write_table(pd.DataFrame(columns=["concept"]), output / name)
    pd.DataFrame(columns=["latents", "f1_valid", "f1_test", "low", "high"]).to_csv(output / "curve.csv", index=False)
    return Outcome(
        {"num_concepts": 0, "num_concepts_left_out": len(data.left_out)},
        f"No concept could be evaluated: none of the {len(data.left_out):,} that occur has {min_instances} annotations "
        f"in {min_proteins} proteins of both the validation and the test split.",
    )


def _at(tested: Sequence[Tested], steps: Ints) -> Tested:
    """Of each concept the scores at its own number of latents."""
    every = np.arange(len(steps))
    scores = [
        np.stack([getattr(each.scores, name) for each in tested])[steps, every]
        for name in ("precision", "recall", "f1")
    ]
    samples = np.stack([each.samples for each in tested])[steps, :, every].T
    return Tested(Scores(*scores), samples)


def _mean(values: Floats, samples: Floats, how: Resampling) -> Interval:
    number = np.maximum((~np.isnan(samples)).sum(axis=1), 1)
    low, high = percentile_bounds(np.nansum(samples, axis=1) / number, how.confidence)
    return Interval(float(np.nanmean(values)), float(low), float(high))


def _concepts(
    data: ConceptData,
    spread: Spread,
    thresholds: Sequence[float],
    enough: Tested,
    gain_low: Floats,
    gain_high: Floats,
    shares: dict[str, Floats],
    limits: dict[str, tuple[Floats, Floats]],
    how: Resampling,
) -> pd.DataFrame:
    one = spread.tested[0]
    some = np.array([bool(union.bits) for union in spread.unions])
    main = pd.Series(spread.predictors.units[:, 0], dtype="Int64").mask(~some)
    table = data.table[["concept", "type", "subtype", "recall_over"]].assign(
        main_latent=main,
        main_threshold=np.where(some, np.asarray(thresholds)[spread.predictors.thresholds[:, 0]], np.nan),
        latents_needed=[union.needed for union in spread.unions],
        latents_in_best_union=[len(union.bits) for union in spread.unions],
    )
    for name, tested in (("one_latent", one), ("latents_needed", enough)):
        low, high = bounds(tested, how.confidence)
        table[f"f1_{name}"], table[f"f1_{name}_low"], table[f"f1_{name}_high"] = tested.scores.f1, low, high
        table[f"recall_{name}"], table[f"precision_{name}"] = tested.scores.recall, tested.scores.precision
    table["f1_gain"] = enough.scores.f1 - one.scores.f1
    table["f1_gain_low"], table["f1_gain_high"] = gain_low, gain_high
    table["num_absorbers"] = [len(each) for each in spread.absorbers]
    for name in _SHARES:
        table[f"absorption_{name}"] = shares[name]
        table[f"absorption_{name}_low"], table[f"absorption_{name}_high"] = limits[name]
    return table.assign(**{name: data.table[name] for name in data.table.columns if name.startswith("num_")})


def _unions(data: ConceptData, spread: Spread, thresholds: Sequence[float]) -> pd.DataFrame:
    """One row per concept and latent of its best union, in the order in which they were added."""
    rows = []
    for concept, union in enumerate(spread.unions):
        for step, (bit, f1) in enumerate(zip(union.bits, union.f1, strict=True)):
            rows.append(
                {
                    "concept": data.concepts[concept].name,
                    "rank": step + 1,
                    "latent": int(spread.predictors.units[concept, bit]),
                    "threshold": thresholds[int(spread.predictors.thresholds[concept, bit])],
                    "f1_valid_with": f1,
                    "f1_test_with": float(spread.tested[step].scores.f1[concept]),
                    "needed": step < union.needed,
                }
            )
    return pd.DataFrame(
        rows, columns=["concept", "rank", "latent", "threshold", "f1_valid_with", "f1_test_with", "needed"]
    )


def _absorbers(
    data: ConceptData, spread: Spread, counts: Counts, thresholds: Sequence[float], rules: SpreadRules
) -> pd.DataFrame:
    """One row per concept and absorber; `subclass` is the named concept of its type that it is precise on, if any."""
    names = [concept.name for concept in data.concepts]
    children = {
        place: [
            other
            for other, each in enumerate(data.concepts)
            if other != place and each.type == concept.type and each.subtype and not concept.subtype
        ]
        for place, concept in enumerate(data.concepts)
    }
    rows = []
    for concept, each in enumerate(spread.absorbers):
        for absorber in each:
            latent = int(spread.predictors.units[concept, absorber.bit])
            threshold = int(spread.predictors.thresholds[concept, absorber.bit])
            active = max(int(counts.active[threshold, latent]), 1)
            precision = {child: counts.true_positives[child, threshold, latent] / active for child in children[concept]}
            best = max(precision, key=lambda child: precision[child], default=None)
            named = best is not None and precision[best] >= rules.min_precision
            rows.append(
                {
                    "concept": names[concept],
                    "latent": latent,
                    "threshold": thresholds[threshold],
                    "subclass": names[best] if named and best is not None else "",
                    "precision_valid": absorber.precision,
                    "share_of_residues_valid": absorber.share,
                    "main_silent_there_valid": absorber.silent,
                }
            )
    columns = ["concept", "latent", "threshold", "subclass", "precision_valid", "share_of_residues_valid"]
    return pd.DataFrame(rows, columns=[*columns, "main_silent_there_valid"])


def _curve(spread: Spread, how: Resampling) -> pd.DataFrame:
    """Mean F1 over concepts with 1, 2, ... latents; a union that stopped growing keeps its last F1."""
    rows = []
    for step, tested in enumerate(spread.tested):
        valid = [union.f1[min(step, len(union.f1) - 1)] if union.f1 else 0.0 for union in spread.unions]
        mean = mean_interval(tested, how.confidence)
        rows.append((step + 1, float(np.mean(valid)), mean.value, mean.low, mean.high))
    return pd.DataFrame(rows, columns=["latents", "f1_valid", "f1_test", "low", "high"])


def _readable(curve: pd.DataFrame) -> pd.DataFrame:
    """For people: one row per number of latents."""
    tested = [Interval(*row).short() for row in curve[["f1_test", "low", "high"]].itertuples(index=False)]
    return pd.DataFrame(
        {
            "latents that stand for a concept": curve["latents"].map(str),
            "mean F1, validation": curve["f1_valid"].map("{:.3f}".format),
            "mean F1, test": tested,
        }
    )


def _summary(metrics: dict[str, float | int], rules: SpreadRules, how: Resampling) -> str:
    def text(name: str) -> str:
        return Interval(metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]).text()

    return (
        f"On {metrics['num_proteins_test']:,} test proteins and {metrics['num_concepts']} concepts (latents are chosen "
        f"on {metrics['num_proteins_valid']:,} validation proteins) a concept takes "
        f"{metrics['mean_latents_needed']:.1f} latents on average to reach {rules.share:.0%} of the F1 of its best "
        f"union of at most {rules.max_latents}; {metrics['num_concepts_split']} take more than one, and of those "
        f"{metrics['num_concepts_split_confirmed']} gain on test beyond the interval. The mean test F1 is "
        f"{text('mean_f1_one_latent')} with one latent and {text('mean_f1_latents_needed')} with those needed. The "
        f"main latent is silent on a share of {text('mean_absorption_silent')} of a concept's residues; on "
        f"{text('mean_absorption_rate')} a latent of a sub-class fires in its place, "
        f"{text('mean_absorption_excess')} more than by chance, beyond the interval for "
        f"{metrics['num_concepts_absorbed']} concepts. Brackets: {how.confidence:.0%} bootstrap intervals over test "
        "proteins."
    )
