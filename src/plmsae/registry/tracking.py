"""Stage runs in MLflow: parameters, metrics, curves, figures and the summary of every tracked stage."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from plmsae.errors import DataError
from plmsae.registry.connection import connect, experiment_id

CURVES = "curves.csv"
MANIFEST_TAG = "manifest_sha256"
PARENT_TAG = "mlflow.parentRunId"
_FILES = ("*.png", "*.html", "summary.md", "metrics.json", "figures/*.png")
_BATCH_METRICS, _BATCH_PARAMS, _PARAM_CHARACTERS = 1000, 100, 6000


class Child(Protocol):
    """A run below a stage's own, e.g. one SAE of a sweep."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Its parameters."""
        ...

    @property
    def metrics(self) -> Mapping[str, float | int]:
        """Its metrics."""
        ...

    @property
    def folder(self) -> str | None:
        """Its folder below the stage's output; None if it has none."""
        ...

    @property
    def failed(self) -> str | None:
        """Why it failed; None if it did not."""
        ...


@dataclass(frozen=True)
class _Run:
    """What goes into one run: an output folder may lack any of the files."""

    params: Mapping[str, Any]
    metrics: Mapping[str, float | int]
    output: Path | None
    tags: Mapping[str, str]


def log_stage_run(
    stage_id: str,
    params: Mapping[str, Any],
    metrics: Mapping[str, float | int],
    output: Path,
    root: Path,
    tags: Mapping[str, str],
    children: Mapping[str, Child] | None = None,
) -> str:
    """Log one run of a stage; a run that is there already for the same output is left as it is.

    Joins the run that `MLFLOW_RUN_ID` names (set by Kubeflow's MLflow plugin), otherwise makes one in the experiment
    `plmsae`. `curves.csv` (a column `step` and one column per quantity) becomes metrics with steps. Children are nested
    runs, complete before the stage's own is finished.

    Args:
        stage_id: For example `train_sae`; the name of the run.
        params: The stage's parameters; nested ones are logged with dotted names.
        metrics: Its metrics.
        output: Its complete output folder, for curves, figures and the summary.
        root: The working folder.
        tags: Tags of the run; `manifest_sha256` names the output.
        children: Name -> run below it.

    Returns:
        The run's id.

    Raises:
        PlmsaeError: The registry cannot be used (see `connect`).
    """
    with connect(root, create=True) as client:
        joined = os.environ.get("MLFLOW_RUN_ID")
        experiment = experiment_id(client, root)
        if not joined:
            if (known := _finished_run(client, experiment, stage_id, tags.get(MANIFEST_TAG))) is not None:
                return known
            run_id = client.create_run(experiment, run_name=stage_id).info.run_id
        else:
            run_id = joined
        _log(client, run_id, _Run(params, metrics, output, {"stage": stage_id, **tags}))
        for name, child in (children or {}).items():
            _log_child(client, experiment, str(run_id), stage_id, name, child, output, tags)
        if not joined:
            client.set_terminated(run_id)
    return str(run_id)


def _log_child(
    client: Any,
    experiment: str,
    parent: str,
    stage_id: str,
    name: str,
    child: Child,
    output: Path,
    tags: Mapping[str, str],
) -> None:
    """One nested run; of one that is there already for the same output nothing changes."""
    labels = {PARENT_TAG: parent, "stage": f"{stage_id}.member", "member": name, **tags}
    key = (PARENT_TAG, "member", MANIFEST_TAG)
    wanted = " and ".join(f"tags.`{tag}` = '{labels[tag]}'" for tag in key if tag in labels)
    for run in client.search_runs([experiment], wanted, max_results=100):
        if run.info.status in ("FINISHED", "FAILED"):
            return
        client.delete_run(run.info.run_id)
    run_id = client.create_run(experiment, run_name=name, tags=labels).info.run_id
    if child.failed:
        labels["mlflow.note.content"] = child.failed
    folder = None if child.folder is None else output / child.folder
    _log(client, run_id, _Run(child.params, child.metrics, folder, labels))
    client.set_terminated(run_id, "FAILED" if child.failed else "FINISHED")


def _log(client: Any, run_id: str, run: _Run) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now, output, labels = int(time.time() * 1000), run.output, dict(run.tags)
    points = [Metric(name, float(value), now, 0) for name, value in run.metrics.items()]
    if output is not None:
        points += [Metric(name, value, now, step) for name, step, value in _curves(output / CURVES)]
        if (output / "summary.md").is_file():
            labels["mlflow.note.content"] = (output / "summary.md").read_text(encoding="utf-8")[:8000]
    for first in range(0, len(points), _BATCH_METRICS):
        client.log_batch(run_id, metrics=points[first : first + _BATCH_METRICS])
    entries = [Param(name, _text(value)[:_PARAM_CHARACTERS]) for name, value in flatten(run.params).items()]
    for first in range(0, len(entries), _BATCH_PARAMS):
        client.log_batch(run_id, params=entries[first : first + _BATCH_PARAMS])
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in labels.items()])
    if output is None:
        return
    for pattern in _FILES:
        for path in sorted(output.glob(pattern)):
            parent = path.parent.relative_to(output).as_posix()
            client.log_artifact(run_id, str(path), None if parent == "." else parent)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _finished_run(client: Any, experiment: str, stage_id: str, manifest: str | None) -> str | None:
    """The finished run of this output; runs of it that were cut off half-way are removed."""
    if manifest is None:
        return None
    wanted = f"tags.{MANIFEST_TAG} = '{manifest}' and tags.stage = '{stage_id}'"
    for run in client.search_runs([experiment], wanted, max_results=100):
        if run.info.status == "FINISHED":
            return str(run.info.run_id)
        for child in client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{run.info.run_id}'", max_results=1000):
            client.delete_run(child.info.run_id)
        client.delete_run(run.info.run_id)
    return None


def _curves(path: Path) -> Iterator[tuple[str, int, float]]:
    """(quantity, step, value) of every finite cell of a curves file; none if there is no file."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as handle:
        for number, row in enumerate(csv.DictReader(handle), start=2):
            try:
                step = int(float(row.pop("step")))
                values = {f"curve.{name}": float(cell) for name, cell in row.items() if cell not in ("", None)}
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    "a curve is not a table of numbers with a column 'step'", where=f"{path}, line {number}"
                ) from error
            yield from ((name, step, value) for name, value in values.items() if math.isfinite(value))
