"""Evaluations of a trained SAE. Each is one module with a function `evaluate`, found here by name.

To add one: write the module, add its name below, and declare its parameters and stage in `stages/evaluate.py`.
An evaluation takes the loaded `inputs.Inputs`, the folder to write into and its parameters, and returns an `Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from plmsae.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from plmsae.evaluation.inputs import Outcome

Evaluation = Callable[..., "Outcome"]


def _fidelity() -> Evaluation:
    from plmsae.evaluation.fidelity import evaluate

    return evaluate


def _concepts() -> Evaluation:
    from plmsae.evaluation.concepts import evaluate

    return evaluate


def _amortisation() -> Evaluation:
    from plmsae.evaluation.amortisation import evaluate

    return evaluate


def _baselines() -> Evaluation:
    from plmsae.evaluation.comparison import evaluate

    return evaluate


def _probes() -> Evaluation:
    from plmsae.evaluation.probes import evaluate

    return evaluate


def _patterns() -> Evaluation:
    from plmsae.evaluation.patterns import evaluate

    return evaluate


def _clustering() -> Evaluation:
    from plmsae.evaluation.clustering import evaluate

    return evaluate


def _absorption() -> Evaluation:
    from plmsae.evaluation.absorption import evaluate

    return evaluate


# torch and the model are imported when an evaluation runs, not when its name is listed.
_EVALUATIONS: dict[str, Callable[[], Evaluation]] = {
    "fidelity": _fidelity,
    "concepts": _concepts,
    "baselines": _baselines,
    "amortisation": _amortisation,
    "probes": _probes,
    "patterns": _patterns,
    "clustering": _clustering,
    "absorption": _absorption,
}


def evaluations() -> tuple[str, ...]:
    """Names of all evaluations."""
    return tuple(_EVALUATIONS)


def evaluation(name: str) -> Evaluation:
    """The function of one evaluation.

    Raises:
        UserError: There is no such evaluation.
    """
    if name not in _EVALUATIONS:
        raise UserError(f"unknown evaluation '{name}'", fix=did_you_mean(name, _EVALUATIONS))
    return _EVALUATIONS[name]()
