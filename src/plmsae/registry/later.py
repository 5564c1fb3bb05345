"""Numbers that a version got after it was registered: of evaluations that only its re-evaluations measured.

A gate may name such an evaluation (docs/adr/0030). Its numbers are those of the newest re-evaluation; two versions' are
comparable where they rest on the same data, PLM, code and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from plmsae.registry import audit
from plmsae.registry.basis import SAE, Basis, changes
from plmsae.registry.gates import Gates
from plmsae.registry.versions import REEVALUATION, Registered


def measured_later(version: Registered) -> dict[str, Basis]:
    """Evaluation -> what its newest numbers rest on, of those that the version was not registered with.

    Raises:
        DataError: A record was edited.
    """
    registered = {name.partition(".")[0] for name in version.metrics}
    found: dict[str, Basis] = {}
    for number, record in audit.records(version.tags, REEVALUATION, version.uri).items():
        evaluations = record.get("evaluations")
        if not isinstance(evaluations, dict):
            raise audit.edited(f"{REEVALUATION}.{number}", version.uri, REEVALUATION)
        for evaluation, measured in evaluations.items():
            if evaluation not in registered:
                basis = measured.get("basis") if isinstance(measured, dict) else None
                found[evaluation] = Basis.parse(basis, where=version.uri)
    return found


def all_metrics(version: Registered) -> dict[str, float]:
    """The metrics that it was registered with, and those of evaluations that came later.

    Raises:
        DataError: A record was edited.
    """
    added: dict[str, float] = {}
    for evaluation in measured_later(version):
        prefix = f"{REEVALUATION}.{evaluation}."
        added |= {
            name.removeprefix(f"{REEVALUATION}."): value
            for name, value in version.metrics.items()
            if name.startswith(prefix)
        }
    return {**version.metrics, **added}


def incomparable(candidate: Registered, champion: Registered, gates: Gates) -> dict[str, str]:
    """Evaluation -> why the two cannot be compared on it, of those that came later and a gate compares.

    Raises:
        DataError: A record was edited.
    """
    ours, theirs = measured_later(candidate), measured_later(champion)
    found: dict[str, str] = {}
    for evaluation in sorted(_compared(gates) & {*ours, *theirs}):
        if evaluation in ours and evaluation in theirs:
            differ = changes(theirs[evaluation], ours[evaluation])
            differ.pop(SAE, None)
            if differ:
                found[evaluation] = (
                    f"'{evaluation}' of the champion (version {champion.version}) was measured otherwise "
                    f"({_text(differ)}); to measure it again: plmsae reevaluate {champion.uri}"
                )
        else:
            lacking = candidate if evaluation not in ours else champion
            which = "the champion" if lacking is champion else "it"
            found[evaluation] = (
                f"{which} (version {lacking.version}) was not re-evaluated by '{evaluation}': "
                f"plmsae reevaluate {lacking.uri}, with reevaluate.evaluations naming it"
            )
    return found


def _compared(gates: Gates) -> set[str]:
    """The evaluations of which a gate compares a metric with the champion's."""
    return {
        evaluation
        for suite in (gates.at_least, gates.at_most)
        for evaluation, metrics in suite.items()
        if any(gate.tolerance is not None for gate in metrics.values())
    }


def _text(differ: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{cause}: {', '.join(lines[:2])}" for cause, lines in differ.items())
