"""Re-evaluations of a registered version: what each one found, as tags `reevaluation.<number>` of the version.

The record of a number holds what every evaluation rests on (`basis.py`) and how its numbers stand to those that the
version was registered with (`drift.py`). From all of them follow what the next one need not do again, the verdict,
and the history. No alias is read or moved here.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.errors import DataError, UserError
from plmsae.params import canonical_json
from plmsae.registry import audit, notices
from plmsae.registry.basis import Basis
from plmsae.registry.claim import claimed
from plmsae.registry.connection import connect, experiment_id, locate, transfer
from plmsae.registry.drift import Drift
from plmsae.registry.history import write_history, write_report
from plmsae.registry.lineage import lineage
from plmsae.registry.versions import (
    DRIFT_TAG,
    REEVALUATION,
    Registered,
    artifact_folder,
    get_version,
    model_id,
    only_champion,
    resolve,
)
from plmsae.registry.webhook import check

logger = logging.getLogger("plmsae")

FINE, DRIFTED = "fine", "drifted"
_NOTIFIED_TAG = "reevaluation_notified"
# Kubeflow run that ended because the version has drifted, so that its end is told from a failure.
_RUN_TAG = "reevaluation_drifted_run"
_RUN_VARIABLE = "KFP_RUN_ID"


@dataclass(frozen=True)
class Measured:
    """One evaluation of a re-evaluation.

    Attributes:
        basis: What its numbers rest on.
        causes: Why it was evaluated: cause -> what changed.
        metrics: All that it measured.
        drift: Its metrics that were compared.
    """

    basis: Basis
    causes: Mapping[str, list[str]]
    metrics: Mapping[str, float]
    drift: tuple[Drift, ...]

    def record(self) -> dict[str, Any]:
        """JSON form; the metrics are on the version."""
        return {
            "basis": self.basis.record(),
            "causes": {cause: list(lines) for cause, lines in self.causes.items()},
            "drift": [each.record() for each in self.drift],
        }


@dataclass(frozen=True)
class Version:
    """A version as a re-evaluation finds it.

    Attributes:
        registered: Name, number, aliases, metrics and tags.
        stages: Port -> what is recorded of the stage whose output went in, from `lineage.lineage`.
        records: Number -> record of the re-evaluations so far.
    """

    registered: Registered
    stages: Mapping[str, dict[str, Any]]
    records: Mapping[int, dict[str, Any]]

    @property
    def told(self) -> int:
        """Number of the newest re-evaluation that a webhook was told of; 0 if there is none."""
        number = self.registered.tags.get(_NOTIFIED_TAG, "")
        return int(number) if number.isdecimal() else 0

    def last(self, evaluation: str) -> dict[str, Any] | None:
        """The newest record of an evaluation; None if it was not evaluated since it was registered."""
        found = [
            record["evaluations"][evaluation] for record in self.records.values() if evaluation in record["evaluations"]
        ]
        return found[-1] if found else None

    def basis(self, evaluation: str) -> Basis | None:
        """What the newest re-evaluation's numbers rest on; None if there was none.

        Raises:
            DataError: The record was edited.
        """
        last = self.last(evaluation)
        return None if last is None else Basis.parse(last.get("basis"), where=self.registered.uri)


def open_version(uri: str | None, root: Path | None = None) -> Version:
    """Resolve an alias, once, and read what is recorded of the version.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; None takes the only champion.
        root: The working folder.

    Raises:
        UserError: Unknown name, alias or version.
        DataError: The registry's copy is damaged, or a record was edited.
        TryAgainError: The registry cannot be reached.
    """
    with connect(root) as client:
        registered = get_version(client, *resolve(client, uri or only_champion(client)))
    return Version(registered, lineage(registered.uri, root)["stages"], records(registered))


def records(version: Registered) -> dict[int, dict[str, Any]]:
    """Number -> record of every re-evaluation, in order.

    Raises:
        DataError: Somebody edited one.
    """
    found = audit.records(version.tags, REEVALUATION, version.uri)
    for number, record in found.items():
        if not _is_record(record) or record["number"] != number:
            raise audit.edited(f"{REEVALUATION}.{number}", version.uri, REEVALUATION)
    return found


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether it has the form that `write` gives it, as far as anything is read from it."""
    kinds = {"number": int, "at": str, "verdict": str, "facts": dict, "evaluations": dict}
    if any(not isinstance(record.get(name), kind) for name, kind in kinds.items()):
        return False
    inner = {"basis": dict, "causes": dict, "drift": list}
    return all(
        isinstance(each, dict) and all(isinstance(each.get(name), kind) for name, kind in inner.items())
        for each in record["evaluations"].values()
    )


def drifts(history: Iterable[Mapping[str, Any]]) -> list[Drift]:
    """How every metric stands: the newest comparison of each evaluation, by its name.

    Raises:
        DataError: A record was edited.
    """
    newest: dict[str, list[dict[str, Any]]] = {}
    for record in history:
        for evaluation, measured in record["evaluations"].items():
            newest[evaluation] = measured["drift"]
    try:
        return [Drift(**each) for _, rows in sorted(newest.items()) for each in rows]
    except TypeError as error:
        raise DataError(
            "the record of a re-evaluation is damaged",
            where=f"tags '{REEVALUATION}.<number>' of the version",
            fix="somebody edited it: remove the tag in MLflow; its evaluations are run again then",
        ) from error


def verdict(found: Iterable[Drift]) -> str:
    """`drifted` if any metric has, else `fine`."""
    return DRIFTED if any(each.drifted for each in found) else FINE


def write(
    version: Version, measured: Mapping[str, Measured], facts: Mapping[str, str], root: Path | None
) -> dict[str, Any]:
    """Put a re-evaluation on the version: files, then metrics, then the record that makes it count.

    One that was killed in between is not on record; the next attempt has its number and writes the same files.

    Args:
        version: The version.
        measured: Evaluation -> what was found.
        facts: What else a reader wants to know of it, e.g. `data_release`.
        root: The working folder.

    Returns:
        The record.

    Raises:
        TryAgainError: The registry cannot be reached, or another process works on this name for minutes.
    """
    name, number = version.registered.name, version.registered.version
    with connect(root) as client, claimed(client, name, "a re-evaluation") as claim:
        raw = client.get_model_version(name, str(number))
        known = records(get_version(client, name, number))
        record: dict[str, Any] = {
            "number": max(known, default=0) + 1,
            "at": audit.now(),
            "facts": dict(facts),
            "evaluations": {evaluation: each.record() for evaluation, each in measured.items()},
        }
        history = {**known, record["number"]: record}
        now = drifts(history.values())
        record["verdict"] = verdict(now)
        with tempfile.TemporaryDirectory(prefix="plmsae-") as scratch:
            folder = Path(scratch) / REEVALUATION
            own = folder / f"{record['number']:04d}"
            own.mkdir(parents=True)
            metrics = {
                f"{evaluation}.{key}": value
                for evaluation, each in measured.items()
                for key, value in each.metrics.items()
            }
            (own / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            (own / "record.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            figure = write_history(folder, history)
            write_report(own / "report.html", version.registered, record, now, figure)
            _upload(client, version.registered, Path(scratch), model_id(raw), root)
        _log(client, root, model_id(raw), version.registered, record["number"], metrics)
        claim.check()
        client.set_model_version_tag(name, str(number), DRIFT_TAG, str(record["verdict"] == DRIFTED).lower())
        client.set_model_version_tag(name, str(number), f"{REEVALUATION}.{record['number']}", canonical_json(record))
    return record


def notified(name: str, version: int, number: int, root: Path | None = None) -> None:
    """Note that a webhook was told of a re-evaluation."""
    with connect(root) as client:
        client.set_model_version_tag(name, str(version), _NOTIFIED_TAG, str(number))


def announce(version: Version, root: Path | None = None) -> None:
    """Tell the webhook of the environment that a version has drifted, once for its newest re-evaluation."""
    number = max(version.records, default=0)
    if not (hook := notices.address()) or version.told >= number:
        return
    try:
        check(hook)
    except UserError as error:  # the drift is what ends the run
        logger.warning("%s", error)
        return
    causes = {name: each["causes"] for name, each in version.records[number]["evaluations"].items()}
    if notices.tell(hook, notices.drifted(version.registered.uri, number, causes, drifts(version.records.values()))):
        notified(version.registered.name, version.registered.version, number, root)


def note_run(name: str, version: int, root: Path | None = None) -> None:
    """Note that the Kubeflow run that this is a task of ends because the version has drifted."""
    if run := os.environ.get(_RUN_VARIABLE, "").strip():
        with connect(root) as client:
            client.set_model_version_tag(name, str(version), _RUN_TAG, run)


def ended_as_drifted(uri: str | None, root: Path | None = None) -> bool:
    """Whether the Kubeflow run that this is a task of ended because the version has drifted.

    Raises:
        UserError: Unknown name, alias or version.
        TryAgainError: The registry cannot be reached.
    """
    run = os.environ.get(_RUN_VARIABLE, "").strip()
    with connect(root) as client:
        version = get_version(client, *resolve(client, uri or only_champion(client)))
    return bool(run) and version.tags.get(_RUN_TAG) == run


def download_report(name: str, version: int, number: int, target: Path, root: Path | None = None) -> None:
    """Copy the report of a re-evaluation, and the history up to the newest one, to a folder.

    Raises:
        TryAgainError: The registry cannot be reached.
    """
    target.mkdir(parents=True, exist_ok=True)
    with connect(root) as client, transfer():
        import mlflow

        source = artifact_folder(client, name, version, locate(root).artifacts).rstrip("/")
        for file in (f"{number:04d}/report.html", "history.csv", "history.png"):
            mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/{REEVALUATION}/{file}", dst_path=str(target))


def _upload(client: Any, version: Registered, folder: Path, logged: str, root: Path | None) -> None:
    """Add files to those of the version; an embedded registry may have moved since MLflow noted its place."""
    place = Path(artifact_folder(client, version.name, version.version, locate(root).artifacts).removeprefix("file://"))
    if locate(root).artifacts is not None and place.is_dir():
        shutil.copytree(folder, place, dirs_exist_ok=True)
        return
    with transfer():
        client.log_model_artifacts(logged, str(folder))


def _log(
    client: Any, root: Path | None, logged: str, version: Registered, number: int, metrics: Mapping[str, float]
) -> None:
    """The metrics on the version, as steps of `reevaluation.<evaluation>.<metric>`, in a run of their own."""
    from mlflow.entities import Metric

    run = client.create_run(
        experiment_id(client, root), run_name="reevaluate", tags={"stage": "reevaluate", "model_version": version.uri}
    ).info.run_id
    now = int(time.time() * 1000)
    points = [
        Metric(f"{REEVALUATION}.{name}", float(value), now, number, model_id=logged) for name, value in metrics.items()
    ]
    for first in range(0, len(points), 1000):
        client.log_batch(run, metrics=points[first : first + 1000])
    client.set_terminated(run)
