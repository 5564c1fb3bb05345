"""The exit task of a pipeline on Argo: says how the run ended, and which tasks failed. Run as a module in the image.

`python -m plmsae.cluster.argo_outcome --run NAME --status STATUS --failures JSON` writes the outcome for people, and
the line of JSON that Kubeflow's exit task writes (`plmsae.stages.final_status`). It never fails because the run failed.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from plmsae.stages import final_status

# Argo numbers the attempts of a task that may be repeated; the task itself has no number.
_ATTEMPT = re.compile(r"\(\d+\)$")


def failed_tasks(failures: str, run: str) -> dict[str, str]:
    """Task -> why it failed, of what Argo says in `workflow.failures`.

    Argo lists every node that failed: the graph itself, the tasks, and their attempts, also those of a task that a
    later attempt saved. It quotes its JSON once more, as a text of Go.

    Args:
        failures: The text; one that cannot be read names no tasks.
        run: Name of the run, which is that of the graph's node.
    """
    nodes: Any = failures
    try:
        if failures.startswith('"'):
            nodes = ast.literal_eval(failures)  # Go writes texts as Python reads them, with escapes that JSON lacks
        nodes = json.loads(nodes) or []
        found = {str(node["displayName"]): str(node.get("message") or "") for node in nodes}
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError):
        return {}
    return {name: why for name, why in sorted(found.items()) if name != run and not _ATTEMPT.search(name)}


def outcome(run: str, status: str, failures: str) -> dict[str, str]:
    """State, run, task and error, as `plmsae.stages.final_status` has them."""
    state = status.upper() or "UNKNOWN"
    failed = {} if state == "SUCCEEDED" else failed_tasks(failures, run)
    return {
        "state": state,
        "run": run,
        "task": ", ".join(failed),
        "error": "; ".join(f"{name}: {why}" if why else name for name, why in failed.items()),
    }


def page(found: dict[str, str]) -> str:
    """The outcome for people."""
    if found["state"] == "SUCCEEDED":
        return f"The run {found['run']} succeeded."
    return (
        f"The run {found['run']} ended as {found['state']}. {found['error'] or 'Argo names no task that failed'}.\n"
        "The last line in the log of the task that failed says what is wrong and what to do. "
        f"Then: argo retry {found['run']}, which goes on behind the finished tasks in the same volume."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the outcome; exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("run", "status", "failures"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--reevaluated", metavar="MODEL", help="of a re-evaluation: the webhook is told of a failure")
    args = parser.parse_args(argv)
    found = outcome(args.run, args.status, args.failures)
    sys.stdout.write(page(found) + "\n")
    sys.stdout.flush()
    if args.reevaluated is not None and found["state"] != "SUCCEEDED":
        final_status.tell(args.reevaluated, found)
    sys.stderr.write(json.dumps({"event": "pipeline finished", **found}, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
