"""The exit task of a pipeline: says how the run ended, whatever happened before. Run as a module in the image.

`python -m plmsae.stages.final_status --executor-input JSON` writes the outcome as Markdown for the UI and as one line
of JSON on standard error, for whatever collects the logs. It never fails because the run failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from plmsae.artifacts.atomic import write_text
from plmsae.errors import PlmsaeError
from plmsae.stages.executor_input import SUMMARY, ExecutorInput

STATUS, REEVALUATED = "status", "reevaluated"
logger = logging.getLogger("plmsae")


_NO_FAILURES = ("SUCCEEDED", "CANCELLED", "CANCELED")


def outcome(status: Mapping[str, Any]) -> dict[str, str]:
    """State, run and error of KFP's `PipelineTaskFinalStatus`, whose keys came in two spellings."""

    def value(*names: str) -> str:
        return next((str(status[name]) for name in names if status.get(name)), "")

    error = status.get("error") or {}
    return {
        "state": value("state") or "UNKNOWN",
        "run": value("pipelineJobResourceName", "pipeline_job_resource_name"),
        "task": value("pipelineTaskName", "pipeline_task_name"),
        "error": str(error.get("message") or "") if isinstance(error, Mapping) else str(error),
    }


def page(found: Mapping[str, str]) -> str:
    """The outcome as Markdown."""
    if found["state"] == "SUCCEEDED":
        return "# The run succeeded\n\nEvery task shows its summary and its metrics, some a report.\n"
    error = f"\n```\n{found['error']}\n```\n" if found["error"] else ""
    return (
        f"# The run ended as {found['state']}\n{error}\n"
        "The last line in the log of the task that failed says what is wrong and what to do. "
        "Finished tasks are cached: the next run goes on behind them.\n"
    )


def tell(model: str, found: Mapping[str, str]) -> None:
    """Tell the webhook of the environment that a re-evaluation failed; of a drift the task `verdict` has told it."""
    from plmsae.registry import notices
    from plmsae.registry.webhook import check

    if not (hook := notices.address()):
        return
    from plmsae.registry.reevaluation import ended_as_drifted

    try:
        check(hook)
        if ended_as_drifted(model or None):
            return
    except PlmsaeError as error:
        logger.warning("%s", error)
    run = os.environ.get("KFP_RUN_ID") or found["run"]
    notices.tell(hook, notices.run_failed(model or "the only champion", found["state"], run))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the outcome; exit code 0 unless the executor input itself is unusable."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor-input", required=True)
    task = ExecutorInput.parse(parser.parse_args(argv).executor_input)
    found = outcome(task.parameters.get(STATUS) or {})
    write_text(task.outputs[SUMMARY], page(found))
    if REEVALUATED in task.parameters and found["state"] not in _NO_FAILURES:
        tell(str(task.parameters[REEVALUATED]), found)
    task.write_output({SUMMARY: {"state": found["state"]}}, {})
    sys.stderr.write(json.dumps({"event": "pipeline finished", **found}, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PlmsaeError as failure:
        sys.exit(f"error: {failure}")
