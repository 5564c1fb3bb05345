"""What a suite is made of and what running it gives; no third-party import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Rule:
    """One expectation.

    Attributes:
        name: Short name that errors and results carry, e.g. `ends_inside_sequence`.
        says: What must hold, one sentence for people.
        expectation: Class of `great_expectations.expectations`.
        arguments: Its arguments. A null in a checked column means that the rule does not concern the row.
        severity: A failed `critical` rule stops the pipeline; a `warning` is reported.
        about: Column of the stored table that the rule is about, where it looks at a derived one.
    """

    name: str
    says: str
    expectation: str
    arguments: Mapping[str, Any]
    severity: Severity = "critical"
    about: str = ""

    @property
    def column(self) -> str:
        """The column or columns that it is about, or empty for a rule about the whole table."""
        return self.about or ", ".join(self.columns)

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        named = [self.arguments[key] for key in ("column", "column_A", "column_B") if key in self.arguments]
        return [*named, *self.arguments.get("column_list", ())]


@dataclass(frozen=True)
class Suite:
    """The rules of one table.

    Attributes:
        table: Name of the table.
        rules: In the order in which they are reported.
        keys: Columns that name a row in examples; the first is shown without its name.
    """

    table: str
    rules: tuple[Rule, ...]
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """The outcome of one rule.

    Attributes:
        table: Name of the table.
        rule: The rule.
        passed: Whether it holds.
        num_checked: Rows that it concerns; 1 for a rule about the whole table.
        num_failed: Rows that break it.
        observed: What was found instead, for a rule about the whole table or one that could not be checked.
        examples: Rows that break it, as text: keys and the offending value.
    """

    table: str
    rule: Rule
    passed: bool
    num_checked: int
    num_failed: int
    observed: str = ""
    examples: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The entry of `results.json`."""
        return {
            "table": self.table,
            "column": self.rule.column,
            "rule": self.rule.name,
            "says": self.rule.says,
            "severity": self.rule.severity,
            "expectation": self.rule.expectation,
            "passed": self.passed,
            "num_checked": self.num_checked,
            "num_failed": self.num_failed,
            "observed": self.observed,
            "examples": list(self.examples),
        }
