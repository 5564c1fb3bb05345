"""Promotion gates: what a version must reach, and how much worse than the champion it may be. No MLflow in here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from plmsae.errors import did_you_mean
from plmsae.params import Params


class Gate(Params):
    """What one metric must satisfy."""

    limit: float | None = Field(default=None, description="The metric's limit; null: none.")
    tolerance: float | None = Field(
        default=None, ge=0, description="How much worse than the champion's it may be; null: not compared."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Gate:
        if self.limit is None and self.tolerance is None:
            raise ValueError("a gate needs a limit, a tolerance or both")
        return self


Suite = dict[str, dict[str, Gate]]

# Honest for a demonstration: most of the masked loss and of the variance is kept, and most of the dictionary is used.
DEFAULT_AT_LEAST: Suite = {
    "fidelity": {"masked_loss_recovered_mean": Gate(limit=50.0, tolerance=2.0)},
    "concepts": {"mean_f1_sae": Gate(tolerance=0.02)},
}
DEFAULT_AT_MOST: Suite = {
    "fidelity": {"fvu": Gate(limit=0.5, tolerance=0.02)},
    "train_sae": {"dead_fraction": Gate(limit=0.5, tolerance=0.1)},
}


# A causal PLM has no masked protocol; what a gate asks of it is asked of the next residue instead.
_MASKED, _CAUSAL = "fidelity.masked_", "fidelity.causal_"


class Gates(Params):
    """What a version must reach to become champion; metrics are named `<evaluation>: <metric>`.

    A gate on `fidelity: masked_*` is one on `causal_*` for the SAE of a causal PLM, which has these instead.
    """

    at_least: Suite = Field(default=DEFAULT_AT_LEAST, description="Metrics of which more is better.")
    at_most: Suite = Field(default=DEFAULT_AT_MOST, description="Metrics of which less is better.")
    other_evaluation: Literal["refuse", "accept"] = Field(
        default="refuse",
        description="If the champion was evaluated on other data or settings, its numbers cannot be compared: refuse, "
        "or accept on the limits alone.",
    )


@dataclass(frozen=True)
class Check:
    """One gate, applied.

    Attributes:
        metric: `<evaluation>.<metric>`.
        rule: `at_least`, `at_most`, `not_below_champion` or `not_above_champion`.
        value: The version's value; None if it was not measured, which never passes.
        limit: What it was held against; for the champion rules its value with the tolerance in it.
        passed: Whether it holds.
        hint: A metric that may have been meant, where the named one was not measured.
    """

    metric: str
    rule: str
    value: float | None
    limit: float
    passed: bool
    hint: str = ""

    def text(self) -> str:
        """For people, e.g. `fidelity.fvu = 0.412 is above 0.4`."""
        if self.value is None:
            return f"{self.metric} was not measured ({self.hint})"
        against = f"{self.limit:.4g}" + (" (the champion's, with tolerance)" if "champion" in self.rule else "")
        lower = self.rule in ("at_least", "not_below_champion")
        if self.passed:
            return f"{self.metric} = {self.value:.4g}; asked: at {'least' if lower else 'most'} {against}"
        return f"{self.metric} = {self.value:.4g} is {'below' if lower else 'above'} {against}"

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def apply_gates(gates: Gates, metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> tuple[Check, ...]:
    """Hold a version's metrics against the limits and, where they are comparable, against the champion's.

    Args:
        gates: The limits.
        metrics: The version's metrics, `<evaluation>.<metric>` -> value.
        champion: The champion's, or None where there is none or it cannot be compared.
    """
    checks: list[Check] = []
    for rule, suite, sign in (("at_least", gates.at_least, 1.0), ("at_most", gates.at_most, -1.0)):
        versus = "not_below_champion" if sign > 0 else "not_above_champion"
        for metric, gate in (
            (measured(f"{part}.{name}", metrics), gate)
            for part, limits in suite.items()
            for name, gate in limits.items()
        ):
            bounds = [] if gate.limit is None else [(rule, gate.limit)]
            if champion is not None and gate.tolerance is not None and metric in champion:
                bounds.append((versus, champion[metric] - sign * gate.tolerance))
            value = metrics.get(metric)
            for name, limit in bounds:
                if value is None:
                    checks.append(Check(metric, name, None, limit, passed=False, hint=_hint(metric, metrics)))
                else:
                    checks.append(Check(metric, name, value, limit, passed=sign * (value - limit) >= 0))
    return tuple(checks)


def measured(metric: str, metrics: Mapping[str, float]) -> str:
    """The name that a metric has here: a gate on `fidelity.masked_*` is one on `causal_*` for a causal PLM."""
    causal = _CAUSAL + metric.removeprefix(_MASKED)
    return causal if metric.startswith(_MASKED) and metric not in metrics and causal in metrics else metric


def _hint(metric: str, metrics: Mapping[str, float]) -> str:
    closest = did_you_mean(metric, metrics)
    return closest if closest.startswith("did you mean") else "plmsae models --metrics lists what was"
