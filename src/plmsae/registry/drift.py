"""Drift: whether an SAE's numbers became worse since it was registered, by a paired bootstrap where one is possible.

Pairs are made of what was measured both times: test proteins of the same accession and length for fidelity, concepts of
the same name for the concept scores. Both sides of a pair are resampled together, so that what proteins have in common
cancels out (Efron and Tibshirani 1993, chapter 16). Where there are no pairs, the two published intervals are combined
in quadrature, which takes them as independent and is therefore wide; the reason is on record.

A metric has drifted if it is worse by more than its tolerance and the interval of the difference excludes zero: the
tolerance says what matters, the interval what is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from plmsae.errors import DataError
from plmsae.evaluation.bootstrap import Floats, Interval, intervals

PER_SEQUENCE, PER_CONCEPT = "per_sequence.parquet", "concepts.csv"
Better = Literal["more", "less"]
_RECOVERED = re.compile(r"([a-z]+)_loss_recovered_(mean|zero)")
_F1 = re.compile(r"mean_f1_([a-z]+)")


@dataclass(frozen=True)
class Settings:
    """How differences are made.

    Attributes:
        min_pairs: Pairs that a paired bootstrap needs.
        num_resamples: Resamples.
        confidence: Coverage of the intervals.
        seed: Seed.
    """

    min_pairs: int
    num_resamples: int
    confidence: float
    seed: int


@dataclass(frozen=True)
class Side:
    """One of the two measurements.

    Attributes:
        folder: Folder with the tables of the evaluation: the version's package, or a stage output.
        metrics: Metric -> value, without the evaluation's name.
    """

    folder: Path
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Drift:
    """One metric, held against what was recorded.

    Attributes:
        metric: `<evaluation>.<metric>`.
        better: Whether `more` or `less` of it is better.
        recorded: Value when the version was registered, on the pairs if there are any; None if it was not measured.
        now: Value now, on the pairs if there are any.
        difference: Now minus recorded.
        low: Lower bound of the difference; None without an interval.
        high: Upper bound.
        tolerance: How much worse it may be.
        num_pairs: Pairs of the bootstrap; 0 if unpaired.
        unit: What a pair is of, `proteins` or `concepts`.
        unpaired: Why there are no pairs; empty if there are.
        drifted: The verdict.
    """

    metric: str
    better: Better
    recorded: float | None
    now: float
    difference: float | None
    low: float | None
    high: float | None
    tolerance: float
    num_pairs: int
    unit: str
    unpaired: str
    drifted: bool

    def text(self) -> str:
        """For people, e.g. `fidelity.fvu: 0.31 -> 0.46, +0.15 [0.12, 0.19], 412 proteins in pairs: drifted`."""
        if self.recorded is None or self.difference is None:
            return f"{self.metric}: not compared ({self.unpaired})"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:+.4g}, {self.high:+.4g}]"
        how = f"{self.num_pairs:,} {self.unit} in pairs" if self.num_pairs else f"unpaired ({self.unpaired})"
        verdict = f"drifted (tolerance {self.tolerance:g})" if self.drifted else "fine"
        return f"{self.metric}: {self.recorded:.4g} -> {self.now:.4g}, {self.difference:+.3g}{bounds}, {how}: {verdict}"

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class _Pairs:
    """What a paired bootstrap takes, or why there is none.

    Attributes:
        unit: `proteins` or `concepts`.
        before: [n, C] sums that the statistic is a function of.
        after: [n, C] likewise.
        reason: Why there are no pairs.
    """

    unit: str
    before: Floats
    after: Floats
    reason: str = ""


def compare(
    evaluation: str, metric: str, better: Better, tolerance: float, before: Side, after: Side, how: Settings
) -> Drift:
    """Hold a metric against what was recorded.

    Args:
        evaluation: E.g. `fidelity`.
        metric: E.g. `fvu`.
        better: Whether more or less of it is better.
        tolerance: How much worse it may be.
        before: What the version was registered with.
        after: What was measured now.
        how: Resamples and coverage.

    Raises:
        DataError: A table cannot be read, or the metric was not measured now.
    """
    name = f"{evaluation}.{metric}"
    recorded, now = before.metrics.get(metric), after.metrics.get(metric)
    if now is None:
        raise DataError(
            f"'{name}' could not be measured",
            where=str(after.folder / "summary.md"),
            fix="look there for the reason; data without annotations have no concepts, for example",
        )
    if recorded is None:
        reason = "it was not measured when the version was registered"
        return Drift(name, better, recorded, now, None, None, None, tolerance, 0, "", reason, drifted=False)
    pairs = _pairs(evaluation, metric, before.folder, after.folder)
    if not pairs.reason and len(pairs.before) < how.min_pairs:
        reason = f"{len(pairs.before)} {pairs.unit} in common, {how.min_pairs} are needed"
        pairs = _Pairs(pairs.unit, pairs.before, pairs.after, reason)
    sign = 1.0 if better == "less" else -1.0
    if pairs.reason:
        found = _unpaired(metric, before.metrics, after.metrics)
        drifted = _worse(sign, found, tolerance)
        low, high = (bound if math.isfinite(bound) else None for bound in (found.low, found.high))
        return Drift(name, better, recorded, now, found.value, low, high, tolerance, 0, "", pairs.reason, drifted)
    old, new, found = _paired(metric, pairs, how)
    bounds = found.low, found.high
    return Drift(
        name,
        better,
        old,
        new,
        found.value,
        *bounds,
        tolerance,
        len(pairs.before),
        pairs.unit,
        "",
        drifted=_worse(sign, found, tolerance),
    )


def _worse(sign: float, difference: Interval, tolerance: float) -> bool:
    """Whether a difference is worse than tolerated and its interval, if there is one, excludes zero."""
    low, high = sorted((sign * difference.low, sign * difference.high))
    known = low > 0 if math.isfinite(low) and math.isfinite(high) else True
    return sign * difference.value > tolerance and known


def _paired(metric: str, pairs: _Pairs, how: Settings) -> tuple[float, float, Interval]:
    """Values before and now on the pairs, and the interval of their difference."""
    width = pairs.before.shape[1]

    def statistics(sums: Floats) -> dict[str, Floats]:
        old, new = _statistic(metric, sums[:, :width]), _statistic(metric, sums[:, width:])
        return {"old": old, "new": new, "difference": new - old}

    found = intervals(
        np.concatenate([pairs.before, pairs.after], axis=1),
        statistics,
        num_resamples=how.num_resamples,
        confidence=how.confidence,
        seed=how.seed,
    )
    for name, each in found.items():
        if not all(map(math.isfinite, (each.value, each.low, each.high))):
            raise DataError(
                f"'{metric}' of the proteins in common is undefined ({name}: {each.value})",
                fix="raise reevaluate.min_pairs, or take more proteins",
            )
    return found["old"].value, found["new"].value, found["difference"]


def _statistic(metric: str, sums: Floats) -> Floats:
    """The metric from sums over pairs, [num_resamples, C] -> [num_resamples]; see `_columns` for C."""
    if _RECOVERED.fullmatch(metric):
        clean, sae, ablated = sums.T
        return np.asarray(100 * _ratio(ablated - sae, ablated - clean))
    return _ratio(sums[:, 0], sums[:, 1])


def _ratio(over: Floats, under: Floats) -> Floats:
    valid = np.abs(under) > 0
    return np.where(valid, over / np.where(valid, under, 1.0), np.nan)


def _pairs(evaluation: str, metric: str, before: Path, after: Path) -> _Pairs:
    empty = np.zeros((0, 1))
    if evaluation == "concepts" and (method := _F1.fullmatch(metric)):
        file, unit = PER_CONCEPT, "concepts"
    elif evaluation == "fidelity" and (metric in ("fvu", "l0") or _RECOVERED.fullmatch(metric)):
        file, unit, method = PER_SEQUENCE, "proteins", None
    else:
        return _Pairs("", empty, empty, "no values of single proteins are kept for this metric")
    for folder, when in ((before, "when the version was registered"), (after, "now")):
        if not (folder / file).is_file():
            return _Pairs(unit, empty, empty, f"no '{file}' was kept {when}")
    tables = []
    for folder in (before, after):
        try:
            table = pd.read_csv(folder / file) if file == PER_CONCEPT else pd.read_parquet(folder / file)
            tables.append(_of_concepts(table, method[1]) if method else _of_proteins(table, metric))
        except KeyError as error:
            return _Pairs(unit, empty, empty, f"'{file}' has no column {error}")
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{file}' cannot be read", where=str(folder / file), fix="pull the version again"
            ) from error
    common = tables[0].index.intersection(tables[1].index).sort_values()
    old, new = (table.loc[common].to_numpy(dtype=np.float64) for table in tables)
    return _Pairs(unit, old, new)


def _of_proteins(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row per protein, indexed by accession and length: the sums that the metric is a function of."""
    columns = _columns(table, metric)
    sums = pd.DataFrame(columns).assign(accession=table["accession"], num_residues=table["num_residues"])
    by_protein = sums.groupby("accession", sort=True).sum()
    return by_protein.set_index("num_residues", append=True)


def _columns(table: pd.DataFrame, metric: str) -> dict[str, pd.Series[float]]:
    """Sums per row of `per_sequence.parquet`, in the order that `_statistic` reads them."""
    if found := _RECOVERED.fullmatch(metric):
        protocol, ablation = found[1], found[2]
        count = table[f"num_{protocol}"]
        return {name: table[f"{protocol}_ce_{name}"] * count for name in ("clean", "sae", ablation)}
    count = table["num_residues"]
    if metric == "l0":
        return {"active": table["l0"] * count, "count": count.astype(float)}
    return {"error": table["mean_squared_error"] * count, "variance": table["variance"] * count}


def _of_concepts(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """One row per concept: test F1, and 1 to count it."""
    rows = table[table["method"] == method].set_index("concept")
    return pd.DataFrame({"f1": rows["f1_test"].astype(float), "count": 1.0})


def _unpaired(metric: str, before: Mapping[str, float], after: Mapping[str, float]) -> Interval:
    """The difference with the two intervals combined in quadrature; NaN bounds where one of them was not recorded."""
    difference = after[metric] - before[metric]
    bounds = [side.get(f"{metric}_{end}", math.nan) for side in (before, after) for end in ("low", "high")]
    if not all(map(math.isfinite, bounds)):
        return Interval(difference, math.nan, math.nan)
    down = math.hypot(after[metric] - bounds[2], bounds[1] - before[metric])
    up = math.hypot(bounds[3] - after[metric], before[metric] - bounds[0])
    return Interval(difference, difference - down, difference + up)
