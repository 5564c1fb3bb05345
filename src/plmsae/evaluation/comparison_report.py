"""Tables, metrics and summary of the comparison with the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from plmsae.evaluation.baselines import Fitted
from plmsae.evaluation.bootstrap import Interval
from plmsae.evaluation.comparison_figure import draw
from plmsae.evaluation.concept_compare import Resampling, difference, mean_interval
from plmsae.evaluation.concept_data import ConceptData
from plmsae.evaluation.concept_report import MethodResult, concept_table, write_table
from plmsae.evaluation.inputs import Outcome
from plmsae.evaluation.polysemanticity import UnitAverage, average
from plmsae.evaluation.reconstruction import Basis
from plmsae.saes.config import SaeConfig

LABELS = {"sae": "SAE", "pca": "PCA", "ica": "ICA", "neurons": "neurons", "random": "random"}


@dataclass(frozen=True)
class Comparison:
    """Everything that was measured.

    Attributes:
        fitted: Methods and what they were fitted to.
        data: Concepts and splits.
        results: Concept scores of every method and of the residue letters; empty without concepts.
        bases: Method -> how its directions lie.
        reconstruction: `fvu:METHOD:BUDGET`, `difference:METHOD`, `active:METHOD`, `hoyer:METHOD`.
        effective: Method -> effective concepts per unit; empty without classes.
        confirmed: Method -> confirmed concepts per unit, bound by bound.
        f1_bounds: Bounds on F1.
        class_names: Classes of the effective number.
        config: Configuration of the SAE.
    """

    fitted: Fitted
    data: ConceptData
    results: Sequence[MethodResult]
    bases: Mapping[str, Basis]
    reconstruction: Mapping[str, Interval]
    effective: Mapping[str, UnitAverage]
    confirmed: Mapping[str, list[UnitAverage]]
    f1_bounds: tuple[float, ...]
    class_names: Sequence[str]
    config: SaeConfig

    @property
    def baselines(self) -> list[str]:
        """Methods that are not the SAE."""
        return [name for name in self.fitted.methods if name != "sae"]

    def own_fvu(self, method: str) -> Interval:
        """FVU at the SAE's L0: of the SAE as it is, of a baseline with its k largest scores."""
        return self.reconstruction["fvu:sae:all" if method == "sae" else f"fvu:{method}:{self.fitted.k}"]


def report(comparison: Comparison, how: Resampling, output: Path) -> Outcome:
    """Write `fvu`, `units`, `concepts_by_method` (Parquet and CSV), `table.csv`, `lecture.csv`, plot table and figure.

    Args:
        comparison: What was measured.
        how: How intervals were made.
        output: Folder to write into.
    """
    comparison.data.left_out.to_csv(output / "left_out.csv", index=False, lineterminator="\n")
    curves = _curves(comparison)
    write_table(curves, output / "fvu")
    largest = curves[curves["kept"] == "largest"].pivot(index="active", columns="method", values="fvu")
    largest.reset_index().to_csv(output / "fvu_by_budget.csv", index=False, float_format="%.6g", lineterminator="\n")
    _units(comparison).to_parquet(output / "units.parquet", index=False)
    f1 = {result.name: mean_interval(result.tested, how.confidence) for result in comparison.results}
    gains = {}
    tested = {result.name: result.tested for result in comparison.results}
    if tested:
        over = {name: difference(each, tested["residue"], how.confidence) for name, each in tested.items()}
        del over["residue"]
        write_table(concept_table(comparison.data, comparison.results, over, how), output / "concepts_by_method")
        gains = {
            name: difference(tested["sae"], tested[name], how.confidence) for name in (*comparison.baselines, "residue")
        }
    rows = _lecture(comparison, f1)
    pd.DataFrame(rows, columns=["property", "measure", "method", "value", "low", "high"]).to_csv(
        output / "lecture.csv", index=False, float_format="%.6g", lineterminator="\n"
    )
    _readable(rows).to_csv(output / "table.csv", index=False, lineterminator="\n")
    draw(comparison, f1, how.confidence, output / "figures" / "baselines.png")
    metrics = _metrics(comparison, f1, how)
    for name, gain in gains.items():
        _put(metrics, f"f1_gain_over_{name}", gain.mean)
        metrics[f"num_concepts_better_than_{name}"] = int((gain.low > 0).sum())
        metrics[f"num_concepts_worse_than_{name}"] = int((gain.high < 0).sum())
    return Outcome(metrics, _summary(comparison, metrics, f1, {n: g.mean for n, g in gains.items()}, how))


def _put(metrics: dict[str, float | int], name: str, interval: Interval) -> None:
    if np.isfinite([interval.value, interval.low, interval.high]).all():
        metrics[name] = interval.value
        metrics[f"{name}_low"], metrics[f"{name}_high"] = interval.low, interval.high


def bound_text(bound: float) -> str:
    """0.25 -> `0_25`, for names of metrics."""
    return f"{bound:g}".replace(".", "_")


def _metrics(comparison: Comparison, f1: Mapping[str, Interval], how: Resampling) -> dict[str, float | int]:
    data, fitted = comparison.data, comparison.fitted
    metrics: dict[str, float | int] = {
        **data.sizes(),
        "num_classes": len(comparison.class_names),
        "num_fit_rows": fitted.num_rows,
        "num_ica_rows": fitted.ica_rows,
        "ica_converged": int(bool(fitted.methods["ica"].config.training["converged"])),
        "budget": fitted.k,
    }
    for name in fitted.methods:
        each = comparison.bases[name]
        metrics[f"num_directions_{name}"] = each.num_directions
        metrics[f"mean_cosine_{name}"], metrics[f"max_cosine_{name}"] = each.mean_cosine, each.max_cosine
        _put(metrics, f"fvu_{name}", comparison.own_fvu(name))
        _put(metrics, f"l0_{name}", comparison.reconstruction[f"active:{name}"])
        _put(metrics, f"hoyer_{name}", comparison.reconstruction[f"hoyer:{name}"])
        if name != "sae":
            _put(metrics, f"fvu_sae_minus_{name}", comparison.reconstruction[f"difference:{name}"])
        if name in f1:
            _put(metrics, f"mean_f1_{name}", f1[name])
        if name in comparison.effective:
            effective = comparison.effective[name]
            metrics[f"num_units_effective_{name}"] = effective.num_units
            if effective.interval:
                _put(metrics, f"effective_concepts_{name}", effective.interval)
            if name != "sae" and (gap := _gap(comparison.effective["sae"], effective, how.confidence)):
                _put(metrics, f"effective_concepts_sae_minus_{name}", gap)
        for bound, confirmed in zip(comparison.f1_bounds, comparison.confirmed.get(name, ())):
            suffix = f"above_{bound_text(bound)}_{name}"
            metrics[f"num_units_{suffix}"] = confirmed.num_units
            if confirmed.interval:
                _put(metrics, f"concepts_per_unit_{suffix}", confirmed.interval)
    _put(metrics, "fvu_pca_leading", comparison.reconstruction[f"fvu:pca_leading:{fitted.k}"])
    _put(metrics, "fvu_pca_all", comparison.reconstruction["fvu:pca:all"])
    if "residue" in f1:
        _put(metrics, "mean_f1_residue", f1["residue"])
    return metrics


def _gap(ours: UnitAverage, theirs: UnitAverage, confidence: float) -> Interval | None:
    """The paired difference of two averages."""
    if ours.interval is None or theirs.interval is None:
        return None
    found = average(
        np.array([ours.interval.value - theirs.interval.value]),
        ours.samples - theirs.samples,
        confidence,
        lowest=-np.inf,
    )
    return found.interval


def _curves(comparison: Comparison) -> pd.DataFrame:
    """FVU by method and number of active units; `all` keeps the whole code."""
    rows = []
    for name, each in comparison.reconstruction.items():
        if not name.startswith("fvu:"):
            continue
        _, method, budget = name.split(":")
        leading = method == "pca_leading"
        own = comparison.reconstruction[f"active:{'pca' if leading else method}"].value
        active = own if budget == "all" else float(budget)
        if budget != "all" and active >= own:
            continue  # the code has no more than its own L0 to keep
        kept = "leading" if leading else "largest"
        rows.append((method.removesuffix("_leading"), kept, active, each.value, each.low, each.high))
    return pd.DataFrame(rows, columns=["method", "kept", "active", "fvu", "low", "high"])


def _units(comparison: Comparison) -> pd.DataFrame:
    """One row per unit and method."""
    tables = []
    for name, sae in comparison.fitted.methods.items():
        n = sae.config.dictionary_size
        table = pd.DataFrame({"method": name, "unit": np.arange(n)})
        nothing = np.full(n, np.nan)
        table["effective_concepts"] = comparison.effective[name].per_unit if comparison.effective else nothing
        for place, bound in enumerate(comparison.f1_bounds):
            found = comparison.confirmed[name][place].per_unit if comparison.confirmed else nothing
            table[f"concepts_above_{bound_text(bound)}"] = np.nan_to_num(found).astype(np.int64)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


Row = tuple[str, str, str, float, float, float]


def _lecture(comparison: Comparison, f1: Mapping[str, Interval]) -> list[Row]:
    """PCA against the SAE, property by property, every entry measured."""
    rows: list[Row] = []

    def put(prop: str, measure: str, method: str, value: Interval | float | None) -> None:
        if value is None:
            return
        each = value if isinstance(value, Interval) else Interval(value, np.nan, np.nan)
        rows.append((prop, measure, method, each.value, each.low, each.high))

    d, k = comparison.config.d_model, comparison.fitted.k
    for name in LABELS:
        sae, each = comparison.fitted.methods[name], comparison.bases[name]
        active = comparison.reconstruction[f"active:{name}"]
        n = sae.config.dictionary_size
        put("basis", "directions per dimension", name, each.num_directions / d)
        put("basis", "largest |cosine| of two directions", name, each.max_cosine)
        put("basis", "mean |cosine| of two directions", name, each.mean_cosine)
        explained = comparison.own_fvu(name)
        explained = Interval(1 - explained.value, 1 - explained.high, 1 - explained.low)
        put("objective", f"variance explained by {k} active units", name, explained)
        put("features", "active units per residue (L0)", name, active)
        put("features", "share of units active", name, Interval(active.value / n, active.low / n, active.high / n))
        put("features", "Hoyer sparsity of the code", name, comparison.reconstruction[f"hoyer:{name}"])
        if name in comparison.effective:
            label = f"effective concepts per unit, of {len(comparison.class_names)}"
            put("semantics", label, name, comparison.effective[name].interval)
        for bound, confirmed in zip(comparison.f1_bounds, comparison.confirmed.get(name, ())):
            put("semantics", f"concepts per unit at F1 > {bound:g}", name, confirmed.interval)
            put("semantics", f"units with a concept at F1 > {bound:g}", name, float(confirmed.num_units))
        put("semantics", "mean best F1 on test", name, f1.get(name))
    return rows


def _readable(rows: Sequence[Row]) -> pd.DataFrame:
    """The same as a table for people, one column per method."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for prop, measure, method, value, low, high in rows:
        text = f"{value:.3f}" if abs(value) < 10 and value != round(value) else f"{value:,.4g}"
        if value == round(value):
            text = f"{value:,.0f}"
        if np.isfinite([low, high]).all() and high > low:
            text = Interval(value, low, high).short(3 if abs(value) < 10 else 1)
        cells.setdefault((prop, measure), {})[method] = text
    table = [
        [prop, measure, *(found.get(method, "none") for method in LABELS)] for (prop, measure), found in cells.items()
    ]
    return pd.DataFrame(table, columns=["property", "measured", *LABELS.values()])


def _summary(
    comparison: Comparison,
    metrics: Mapping[str, float | int],
    f1: Mapping[str, Interval],
    gains: Mapping[str, Interval],
    how: Resampling,
) -> str:
    k = comparison.fitted.k
    text = (
        f"On {metrics['num_proteins_test']:,} test proteins ({metrics['num_residues_test']:,} residues), with "
        f"baselines fitted to {metrics['num_fit_rows']:,} training residues: at {k} active units the FVU is "
        + ", ".join(f"{comparison.own_fvu(name).text(4)} for {label}" for name, label in LABELS.items())
        + f"; PCA truncated to its first {k} components leaves "
        f"{comparison.reconstruction[f'fvu:pca_leading:{k}'].text(4)}, and with all of them "
        f"{comparison.reconstruction['fvu:pca:all'].value:.2g}. "
    )
    if not comparison.fitted.methods["ica"].config.training["converged"]:
        text += "FastICA had not settled when its iterations ended. "
    if not f1:
        return text + "No concept was frequent enough to score units against."
    over = "; ".join(
        f"{LABELS[name]} {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        for name, gain in gains.items()
        if name in LABELS
    )
    text += (
        f"Mean best F1 over {metrics['num_concepts']} concepts: "
        + ", ".join(f"{f1[name].text()} for {label}" for name, label in LABELS.items())
        + f", {f1['residue'].text()} for the residue's letter; the SAE's lead, paired: {over}. "
    )
    effective = {
        label: found.interval
        for name, label in LABELS.items()
        if name in comparison.effective and (found := comparison.effective[name]).interval
    }
    text += f"Effective concepts per unit, of {metrics['num_classes']}: "
    text += ", ".join(f"{interval.text(2)} for {label}" for label, interval in effective.items() if interval) + ". "
    lowest = comparison.f1_bounds[0]
    suffix = f"above_{bound_text(lowest)}"
    counted = ", ".join(
        f"{metrics[f'concepts_per_unit_{suffix}_{name}']:.2f} over {metrics[f'num_units_{suffix}_{name}']} units of "
        f"{label}"
        for name, label in LABELS.items()
        if f"concepts_per_unit_{suffix}_{name}" in metrics
    )
    text += f"Confirmed concepts per unit at F1 > {lowest:g}: {counted or 'no unit of any method has one'}. "
    return text + f"Brackets: {how.confidence:.0%} bootstrap intervals over test proteins."
