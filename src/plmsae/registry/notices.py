"""What the webhook is told of a re-evaluation: that a version has drifted, or that something failed.

A failure is told by its kind alone: a message may quote an address or a path.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from plmsae.errors import TryAgainError
from plmsae.registry.webhook import VARIABLE, post

if TYPE_CHECKING:
    from plmsae.registry.drift import Drift

logger = logging.getLogger("plmsae")


def address() -> str:
    """The webhook of the environment; empty if there is none."""
    return os.environ.get(VARIABLE, "").strip()


def drifted(uri: str, number: int, causes: Mapping[str, Iterable[str]], drift: Iterable[Drift]) -> dict[str, Any]:
    """That a version has drifted.

    Args:
        uri: `models:/NAME/VERSION`.
        number: Number of its newest re-evaluation.
        causes: Evaluation that was run -> the kinds of causes.
        drift: How every metric stands.
    """
    worse = [each for each in drift if each.drifted]
    return {
        "event": "drifted",
        "text": f"{uri} has drifted: {'; '.join(each.text() for each in worse)}",
        "model": uri,
        "number": number,
        "causes": {name: sorted(kinds) for name, kinds in causes.items()},
        "drift": [each.record() for each in worse],
    }


def failed(model: str, exit_code: int) -> dict[str, Any]:
    """That a re-evaluation failed."""
    return {
        "event": "failed",
        "text": f"the re-evaluation of {model} failed with exit code {exit_code}; its log says why",
        "model": model,
        "exit_code": exit_code,
    }


def run_failed(model: str, state: str, run: str) -> dict[str, Any]:
    """That a run of the pipeline failed."""
    return {
        "event": "failed",
        "text": f"the re-evaluation of {model} ended as {state}; the task that failed says why (run {run})",
        "model": model,
        "state": state,
        "run": run,
    }


def tell(hook: str, message: Mapping[str, Any]) -> bool:
    """Whether the webhook was told; if not, that is a warning: the outcome stands on the version."""
    try:
        post(hook, message)
    except TryAgainError as error:
        logger.warning("%s", error)
        return False
    return True
