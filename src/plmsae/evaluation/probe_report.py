"""Tables, metrics, figure and summary of the probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.binary_scores import SCORES, Sampled
from plmsae.evaluation.bootstrap import Interval, percentile_bounds
from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.inputs import Outcome
from plmsae.evaluation.probe_data import ProbeData
from plmsae.evaluation.probe_figure import draw
from plmsae.evaluation.probe_fits import Chosen, Probes, Settings
from plmsae.saes.config import SaeConfig

KINDS = ("one unit", "all units")
LABELS = {"f1": "F1", "mcc": "Matthews correlation", "balanced_accuracy": "balanced accuracy"}
SCORE_NAMES = {**LABELS, "auroc": "AUROC"}
MAX_WEIGHTS = 100
# What a reader compares -> feature set and kind of probe.
_PROBES = {
    "one latent": ("sae", KINDS[0]),
    "all latents": ("sae", KINDS[1]),
    "one neuron": ("neurons", KINDS[0]),
    "all neurons": ("neurons", KINDS[1]),
}
# What the letters alone tell: for residues those around them, for proteins the composition.
CONTROLS = {False: "window", True: "letters mean"}


@dataclass(frozen=True)
class Found:
    """Probes of one task on one feature set, chosen and tested.

    Attributes:
        task: Name of the task.
        feature: Name of the feature set, e.g. `sae`, or `sae mean` where proteins are the examples.
        chosen: The chosen probes of its classes.
        tested: Per kind of probe (`KINDS`) and class.
        accuracy: `probe_accuracy.accuracies` of the all-unit probes; None where classes do not exclude each other.
        num_one_answer: Test examples that it is taken over.
        probes: All probes that were chosen from.
        names: Names of the units.
    """

    task: str
    feature: str
    chosen: Chosen
    tested: Sequence[Sequence[Sampled]]
    accuracy: Mapping[str, Interval] | None
    num_one_answer: int
    probes: Probes
    names: Sequence[str]


def nothing_to_probe(data: ProbeData, output: Path, min_positives: int, min_proteins: int) -> Outcome:
    """The result where no class has enough examples."""
    write_table(pd.DataFrame(columns=["task", "class"]), output / "probes")
    write_table(pd.DataFrame(columns=["task", "class"]), output / "units")
    pd.DataFrame(columns=["task", "class"]).to_parquet(output / "weights.parquet", index=False)
    summary = (
        f"No probe could be fitted: none of the {len(data.left_out):,} classes has {min_positives} positive examples "
        f"in {min_proteins} proteins of each of training, validation and test."
    )
    return Outcome({"num_classes": 0, "num_classes_left_out": len(data.left_out)}, summary)


def report(
    data: ProbeData,
    found: Sequence[Found],
    settings: Settings,
    how: Resampling,
    units_per_class: int,
    config: SaeConfig,
    output: Path,
) -> Outcome:
    """Write everything.

    Args:
        data: Tasks and sizes.
        found: Every task on every feature set.
        settings: How probes were fitted.
        how: How intervals were made.
        units_per_class: Units listed for each class.
        config: Configuration of the SAE.
        output: Folder to write into.
    """
    table = probe_table(data, found, settings, how)
    write_table(table, output / "probes")
    write_table(unit_table(data, found, settings, units_per_class), output / "units")
    weight_table(data, found).to_parquet(output / "weights.parquet", index=False)
    accurate = accuracy_table(found)
    accurate.to_csv(output / "accuracy.csv", index=False, float_format="%.6g", lineterminator="\n")
    means = {
        (score, each.task, each.feature, kind): _mean(each.tested[place], score, how.confidence)
        for score in ("auroc", settings.criterion)
        for each in found
        for place, kind in enumerate(KINDS)
    }
    _readable(data, means, settings.criterion).to_csv(output / "table.csv", index=False, lineterminator="\n")
    draw(table, means, settings.criterion, config.layer, output / "figures" / "probes.png")
    metrics: dict[str, float | int] = {
        "num_classes": len(data.sizes),
        "num_classes_left_out": len(data.left_out),
        "num_tasks": len(data.tasks),
        "num_probes_unconverged": sum(each.probes.num_unconverged for each in found),
    }
    for split, labels in data.splits.items():
        metrics[f"num_proteins_{split}"] = int(labels.owners.max()) + 1
        metrics[f"num_residues_{split}"] = int(labels.starts[-1])
    for (score, task, feature, kind), mean in means.items():
        name = f"mean_{score}_{task}_{feature}_{kind}".replace(" ", "_")
        metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = mean.value, mean.low, mean.high
    for _, row in accurate.iterrows():
        name = f"accuracy_{row['task']}_{row['features']}".replace(" ", "_")
        metrics |= {name: row["accuracy"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return Outcome(metrics, _summary(data, table, means, metrics, settings.criterion, config, how.confidence))


def probe_table(data: ProbeData, found: Sequence[Found], settings: Settings, how: Resampling) -> pd.DataFrame:
    """One row per class, feature set and kind of probe: which unit or C, test scores with intervals, and the gain."""
    by_key = {(each.task, each.feature): each for each in found}
    rows = []
    for each in found:
        per_protein, classes = data.tasks[each.task]
        control = by_key[each.task, CONTROLS[per_protein]]
        chosen = each.chosen
        for number, label in enumerate(classes):
            for place, kind in enumerate(KINDS):
                tested = each.tested[place][number]
                one = place == 0
                unit = int(chosen.units[number])
                row: dict[str, object] = {
                    "task": each.task,
                    "class": label,
                    "features": each.feature,
                    "probe": kind,
                    "unit": unit if one else None,
                    "unit_name": each.names[unit] if one else "",
                    "slope": chosen.slopes[number] if one else np.nan,
                    "strength": settings.strength if one else chosen.strengths[number],
                    "num_weights": 1 if one else int((chosen.weights[number] != 0).sum()),
                    f"{settings.criterion}_valid": (chosen.one_valid if one else chosen.all_valid)[number],
                }
                for name in SCORES:
                    interval = tested.interval(name, how.confidence)
                    row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
                row["control"] = f"{control.feature}, {KINDS[1]}"
                for name in ("auroc", settings.criterion):
                    gain = tested.minus(control.tested[1][number], name, how.confidence)
                    row |= {f"{name}_gain": gain.value, f"{name}_gain_low": gain.low, f"{name}_gain_high": gain.high}
                rows.append(row)
    table = pd.DataFrame(rows)
    table["unit"] = table["unit"].astype("Int64")
    return table.merge(data.sizes, on=["task", "class"], how="left", validate="many_to_one")


def unit_table(data: ProbeData, found: Sequence[Found], settings: Settings, most: int) -> pd.DataFrame:
    """The units whose one-unit probes are best on validation, from the best; ties by number."""
    tables = []
    for each in found:
        scores, slopes = each.probes.valid_scores(), each.probes.slopes()
        order = np.argsort(-np.nan_to_num(scores, nan=-2.0), axis=1, kind="stable")[:, :most]
        for number, label in enumerate(data.tasks[each.task][1]):
            units = order[number]
            tables.append(
                pd.DataFrame(
                    {
                        "task": each.task,
                        "class": label,
                        "features": each.feature,
                        "rank": np.arange(1, len(units) + 1),
                        "unit": units,
                        "unit_name": [each.names[unit] for unit in units],
                        "slope": slopes[number, units],
                        f"{settings.criterion}_valid": scores[number, units],
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def weight_table(data: ProbeData, found: Sequence[Found]) -> pd.DataFrame:
    """The largest weights of the all-unit probes, at most `MAX_WEIGHTS` each; zeros are left out."""
    tables = []
    for each in found:
        for number, label in enumerate(data.tasks[each.task][1]):
            weights = each.chosen.weights[number]
            units = np.argsort(-np.abs(weights), kind="stable")[:MAX_WEIGHTS]
            units = units[weights[units] != 0]
            tables.append(
                pd.DataFrame(
                    {
                        "task": each.task,
                        "class": label,
                        "features": each.feature,
                        "unit": units,
                        "unit_name": [each.names[unit] for unit in units],
                        "weight": weights[units],
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def accuracy_table(found: Sequence[Found]) -> pd.DataFrame:
    """Accuracy of the all-unit probes of tasks whose classes exclude each other, and of the most frequent class."""
    columns = ["task", "features", "accuracy", "low", "high", "most_frequent", "num_examples"]
    rows = [
        (
            each.task,
            each.feature,
            each.accuracy["accuracy"].value,
            each.accuracy["accuracy"].low,
            each.accuracy["accuracy"].high,
            each.accuracy["most_frequent"].value,
            each.num_one_answer,
        )
        for each in found
        if each.accuracy is not None
    ]
    return pd.DataFrame(rows, columns=columns)


def _mean(tested: Sequence[Sampled], name: str, confidence: float) -> Interval:
    """Mean over classes; in a resample, over those that it defines."""
    samples = np.stack([each.samples[name] for each in tested])
    number = np.isfinite(samples).sum(axis=0)
    means = np.where(number > 0, np.nansum(samples, axis=0) / np.maximum(number, 1), np.nan)
    low, high = percentile_bounds(means, confidence)
    value = float(np.mean([each.values[name] for each in tested]))
    return Interval(value, float(low), float(high))


def _readable(data: ProbeData, means: dict[tuple[str, str, str, str], Interval], criterion: str) -> pd.DataFrame:
    """For people: one row per task and score, one column per probe."""
    rows = []
    for task, (per_protein, classes) in data.tasks.items():
        for score in dict.fromkeys((criterion, "auroc")):
            probes = {
                name: means[score, task, f"{feature}{_pool(per_protein)}", kind].short()
                for name, (feature, kind) in _PROBES.items()
            }
            probes["all letters"] = means[score, task, CONTROLS[per_protein], KINDS[1]].short()
            name = {"task": task.replace("_", " "), "classes": len(classes), "mean test score": SCORE_NAMES[score]}
            rows.append({**name, **probes})
    return pd.DataFrame(rows)


def _pool(per_protein: bool) -> str:
    return " mean" if per_protein else ""


def _summary(
    data: ProbeData,
    table: pd.DataFrame,
    means: dict[tuple[str, str, str, str], Interval],
    metrics: dict[str, float | int],
    criterion: str,
    config: SaeConfig,
    confidence: float,
) -> str:
    parts = []
    for task, (per_protein, classes) in data.tasks.items():
        pool, control = _pool(per_protein), CONTROLS[per_protein]
        ours = table[(table["task"] == task) & (table["features"] == f"sae{pool}") & (table["probe"] == KINDS[0])]
        more = int((ours[f"{criterion}_gain_low"] > 0).sum())
        told = {
            name: means[criterion, task, f"{feature}{pool}", kind].text() for name, (feature, kind) in _PROBES.items()
        }
        told[f"all letters ({control})"] = means[criterion, task, control, KINDS[1]].text()
        parts.append(
            f"{task.replace('_', ' ')} ({len(classes)} class{'es' * (len(classes) > 1)}): "
            f"{', '.join(f'{name} {text}' for name, text in told.items())}; one latent tells more than the letters "
            f"beyond the interval for {more} of {len(classes)}"
        )
    return (
        f"Logistic probes on layer {config.layer}, fitted on {metrics['num_proteins_train']:,} training proteins, "
        f"chosen on {metrics['num_proteins_valid']:,} and scored on {metrics['num_proteins_test']:,} test proteins of "
        f"other homology clusters. Mean {LABELS[criterion]} over classes: {'; '.join(parts)}. "
        f"{metrics['num_classes_left_out']} classes have too few examples. Brackets: {confidence:.0%} bootstrap "
        "intervals over proteins."
    )
