"""The SAE beside SAEs that were trained alike on models without trained weights, and beside the other baselines.

What an SAE finds in a model with permuted or random weights (Simon & Zou 2024, "Shuffled") is owed to the sequence and
to the architecture of model and SAE, not to what the model has learnt. The controls' SAEs have the size,
hyper-parameters, tokens and seed of the SAE, and go through the protocol of `comparison`: maxima over the same training
residues, units and thresholds of concepts selected on validation proteins, F1 and FVU on test proteins, resampled alike
so that differences are paired. Each reads the activations of its own model.

Fidelity is left out: the loss of a model without trained weights is that of a guess, and there is nothing to recover.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plmsae.evaluation.baselines import METHODS, measure_maxima, training_rows
from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.comparison_report import LABELS
from plmsae.evaluation.concept_compare import difference
from plmsae.evaluation.concept_report import write_table
from plmsae.evaluation.controls_figure import draw
from plmsae.evaluation.inputs import Inputs, Outcome, Proteins
from plmsae.evaluation.member_pass import Member
from plmsae.evaluation.sae_compare import Comparison, compare
from plmsae.evaluation.sae_compare_report import concept_table

SAE, LETTERS = "sae", "residue"
SILENT = "none of its latents fires on the training residues"
_QUANTITIES = {"mean_f1": "mean_f1", "fvu": "fvu", "l0": "l0", "dead": "dead_fraction"}


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    controls: Mapping[str, Inputs],
    failed: Mapping[str, str],
    baselines: Mapping[str, float],
    max_proteins: int | None,
    fit_rows: int | None,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Measure the controls beside the SAE, and put the baselines beside them.

    Args:
        inputs: Proteins, annotations, SAE, model and store.
        output: Folder that gets `controls`, `concepts` (Parquet and CSV), `table.csv` for people, and the figure.
        controls: Name, e.g. `permuted_weights`, -> the same of a control.
        failed: Name -> why a control has no SAE.
        baselines: Metrics of `evaluate@baselines` for the same SAE and with the same parameters.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        fit_rows: Training residues that maxima are taken over; None for as many as in the SAE's file.
        min_instances: Annotations that a concept needs in each split.
        min_proteins: Proteins with one that it needs.
        thresholds: Ascending thresholds on normalised activations.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset and bootstrap.
    """
    members, silent = [_member(SAE, inputs, fit_rows)], {}
    for name, each in controls.items():
        member = _member(name, each, fit_rows)
        if bool((member.sae.latent_max > 0).any()):
            members.append(member)
        else:
            silent[name] = SILENT
    found = compare(
        Proteins(inputs.sequences),
        members,
        max_proteins=max_proteins,
        min_instances=min_instances,
        min_proteins=min_proteins,
        thresholds=thresholds,
        match=False,
        match_thresholds=[],
        num_resamples=num_resamples,
        confidence=confidence,
        max_tokens=max_tokens,
        threads=threads,
        seed=seed,
    )
    failed = {**failed, **silent}
    rows = [*_measured(found, confidence), *_failed(failed), *_from(baselines)]
    counts = dict.fromkeys(("num_concepts_sae_better", "num_concepts_sae_worse"), "Int64")
    table = pd.DataFrame(rows).astype(counts)
    write_table(table, output / "controls")
    _readable(table).to_csv(output / "table.csv", index=False, lineterminator="\n")
    if found.tested:
        write_table(concept_table(found), output / "concepts")
    draw(table, len(found.data.concepts), confidence, output / "figures" / "controls.png")
    metrics = _metrics(found, rows)
    metrics |= {"num_controls": len(members) - 1, "num_failed_controls": len(failed)}
    return Outcome(metrics, _summary(found, rows, failed, confidence, seed))


def _member(name: str, inputs: Inputs, fit_rows: int | None) -> Member:
    """An SAE with maxima over the training rows that the baselines' are taken over."""
    sae = copy.deepcopy(inputs.sae).requires_grad_(False)
    measure_maxima(sae, training_rows(inputs, fit_rows))
    return Member(name, sae, inputs.plm)


def _put(row: dict[str, Any], name: str, interval: Interval | None) -> None:
    """A value with its bounds; what is not known, or not finite, stays empty."""
    numbers = [np.nan] * 3 if interval is None else [interval.value, interval.low, interval.high]
    for suffix, number in zip(("", "_low", "_high"), numbers, strict=True):
        row[name + suffix] = float(number) if np.isfinite(number) else np.nan


def _row(
    method: str,
    kind: str,
    plm: str | None = None,
    values: Mapping[str, Interval] | None = None,
    gain: Interval | None = None,
    better: int | None = None,
    worse: int | None = None,
    failed: str = "",
) -> dict[str, Any]:
    """One row of the table; `gain` is the SAE's F1 minus this method's, `better` where its interval is above 0."""
    row: dict[str, Any] = {"method": method, "kind": kind, "plm": plm or ""}
    values = values or {}
    _put(row, "mean_f1", values.get("mean_f1"))
    _put(row, "f1_gain_of_sae", gain)
    row |= {"num_concepts_sae_better": better, "num_concepts_sae_worse": worse}
    for name in ("fvu", "l0", "dead_fraction"):
        _put(row, name, values.get(name))
    return row | {"failed": failed}


def _measured(found: Comparison, confidence: float) -> list[dict[str, Any]]:
    rows = []
    for place, (member, values) in enumerate(zip(found.members, found.values, strict=True)):
        kept = {title: values[name] for name, title in _QUANTITIES.items() if name in values}
        gain, better, worse = None, None, None
        if place and found.tested:
            gap = difference(found.tested[0], found.tested[place], confidence)
            gain, better, worse = gap.mean, int((gap.low > 0).sum()), int((gap.high < 0).sum())
        kind = "control" if place else "sae"
        rows.append(_row(member.name, kind, member.plm.name, kept, gain, better, worse))
    return rows


def _failed(failed: Mapping[str, str]) -> list[dict[str, Any]]:
    return [_row(name, "control", failed=reason) for name, reason in failed.items()]


def _from(baselines: Mapping[str, float]) -> list[dict[str, Any]]:
    """What `evaluate@baselines` measured; FVU of its methods is at as many active units as the SAE has."""
    rows = []
    budget = float(baselines["budget"])
    for name in (*(name for name in METHODS if name != SAE), LETTERS):
        values = {
            title: each for title in ("mean_f1", "fvu") if (each := _interval(baselines, f"{title}_{name}")) is not None
        }
        if name != LETTERS:
            values["l0"] = Interval(budget, budget, budget)
        counts = [baselines.get(f"num_concepts_{word}_than_{name}") for word in ("better", "worse")]
        better, worse = (None if count is None else int(count) for count in counts)
        kind = "letters" if name == LETTERS else "baseline"
        gain = _interval(baselines, f"f1_gain_over_{name}")
        rows.append(_row(name, kind, None, values, gain, better, worse))
    return rows


def _interval(metrics: Mapping[str, float], name: str) -> Interval | None:
    found = [metrics.get(name + suffix) for suffix in ("", "_low", "_high")]
    value, low, high = (np.nan if each is None else float(each) for each in found)
    return None if np.isnan(value) else Interval(value, low, high)


def _metrics(found: Comparison, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """Named as those of `evaluate@baselines`."""
    metrics: dict[str, float | int] = dict(found.data.sizes())

    def put(name: str, value: float, low: float, high: float) -> None:
        if np.isfinite([value, low, high]).all():
            metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = value, low, high

    for place, row in enumerate(rows[: len(found.members)]):
        name = row["method"]
        for title in ("mean_f1", "fvu", "l0", "dead_fraction"):
            put(f"{title}_{name}", *(row[title + suffix] for suffix in ("", "_low", "_high")))
        if place:
            put(f"f1_gain_over_{name}", *(row[f"f1_gain_of_sae{suffix}"] for suffix in ("", "_low", "_high")))
            gap = found.differences[place - 1]["fvu"]
            put(f"fvu_sae_minus_{name}", -gap.value, -gap.high, -gap.low)
            for word in ("better", "worse"):
                if row[f"num_concepts_sae_{word}"] is not None:
                    metrics[f"num_concepts_{word}_than_{name}"] = int(row[f"num_concepts_sae_{word}"])
    return metrics


def label(method: str) -> str:
    """Name of a method for people."""
    return {**LABELS, "random": "random atoms", LETTERS: "the residue's letter"}.get(method, method.replace("_", " "))


def _text(row: Mapping[str, Any], name: str, digits: int, *, sign: bool = False) -> str:
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    value, low, high = (form.format(row[name + suffix]) for suffix in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for people; what is not known stays empty."""
    rows = []
    for _, row in table.iterrows():
        known = {name: bool(np.isfinite(row[name])) for name in ("mean_f1", "f1_gain_of_sae", "fvu", "dead_fraction")}
        counts = [row[f"num_concepts_sae_{word}"] for word in ("better", "worse")]
        rows.append(
            {
                "method": label(row["method"]),
                "mean best F1": _text(row, "mean_f1", 3) if known["mean_f1"] else row["failed"],
                "the SAE's lead": _text(row, "f1_gain_of_sae", 3, sign=True) if known["f1_gain_of_sae"] else "",
                "concepts better, worse": "" if pd.isna(counts).any() else f"{counts[0]}, {counts[1]}",
                "FVU": _text(row, "fvu", 4) if known["fvu"] else "",
                "active": f"{row['l0']:.1f}" if np.isfinite(row["l0"]) else "",
                "dead": _text(row, "dead_fraction", 3) if known["dead_fraction"] else "",
            }
        )
    return pd.DataFrame(rows)


def _summary(
    found: Comparison, rows: Sequence[Mapping[str, Any]], failed: Mapping[str, str], confidence: float, seed: int
) -> str:
    sizes = found.data.sizes()
    ours = rows[: len(found.members)]
    text = (
        f"On {sizes['num_proteins_test']:,} test proteins ({sizes['num_residues_test']:,} residues) FVU is "
        + ", ".join(
            f"{_text(row, 'fvu', 4)} at {row['l0']:.1f} active latents with {row['dead_fraction']:.1%} dead for "
            + ("the SAE" if row["method"] == SAE else f"the same SAE on {label(row['method'])}")
            for row in ours
            if np.isfinite(row["fvu"])
        )
        + ". "
    )
    if found.tested:
        text += f"Mean best F1 over {sizes['num_concepts']} concepts: "
        text += ", ".join(
            f"{_text(row, 'mean_f1', 3)} for {label(row['method'])}" for row in rows if np.isfinite(row["mean_f1"])
        )
        gains = [
            f"{_text(row, 'f1_gain_of_sae', 3, sign=True)} over {label(row['method'])}"
            for row in ours[1:]
            if np.isfinite(row["f1_gain_of_sae"])
        ]
        text += f"; the SAE's lead, paired: {', '.join(gains)}. " if gains else ". "
    else:
        text += "No concept was frequent enough to score units against. "
    for name, reason in failed.items():
        text += f"No SAE on {label(name)}: {reason}. "
    return text + (
        "Fidelity is not given for controls: their model's loss is that of a guess. "
        f"Brackets: {confidence:.0%} bootstrap intervals over test proteins, seed {seed}."
    )
