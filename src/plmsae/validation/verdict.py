"""From findings to an error that names table, column, rule, counts and examples."""

from __future__ import annotations

from collections.abc import Sequence

from plmsae.errors import DataError
from plmsae.validation.rules import Finding

MAX_NAMED = 5


def failures(findings: Sequence[Finding], *, warnings_as_errors: bool = False) -> list[Finding]:
    """The findings that stop the pipeline."""
    return [
        finding
        for finding in findings
        if not finding.passed and (warnings_as_errors or finding.rule.severity == "critical")
    ]


def require(findings: Sequence[Finding], *, where: str, fix: str, warnings_as_errors: bool = False) -> None:
    """Raise if a rule that matters is broken.

    Args:
        findings: Findings of any number of suites.
        where: What the error points to: the report, or the store.
        fix: What to do about it.
        warnings_as_errors: Also stop at rules of severity `warning`.

    Raises:
        DataError: Names each broken rule (at most five in full).
    """
    broken = failures(findings, warnings_as_errors=warnings_as_errors)
    if not broken:
        return
    lines = [describe(finding) for finding in broken[:MAX_NAMED]]
    if len(broken) > MAX_NAMED:
        lines.append(f"and {len(broken) - MAX_NAMED} more")
    raise DataError("; ".join(lines), where=where, fix=fix)


def describe(finding: Finding) -> str:
    """One line about a broken rule, e.g.

    `table 'annotations', column 'end', rule 'starts_before_end' (...): 2 of 90 rows fail: P1 3..700 Domain; ...`
    """
    rule = finding.rule
    place = f"table '{finding.table}'" + (f", column '{rule.column}'" if rule.column else "") + f", rule '{rule.name}'"
    counts = f"{finding.num_failed:,} of {finding.num_checked:,} rows fail" if finding.examples else "fails"
    shown = "; ".join(finding.examples) if finding.examples else f"found {finding.observed or 'nothing'}"
    return f"{place} ({rule.says}): {counts}: {shown}"
