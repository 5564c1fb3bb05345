"""Registering a SAE: package, upload, metrics on the version, alias `candidate`. Repeating it changes nothing.

The version is created last, in one call that carries its tags: a version that exists has its files and its metrics.
What a kill leaves behind before that call is a logged model with the same evidence tag, which the next attempt finds
and completes.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.registry.card import short_description
from plmsae.registry.connection import connect, experiment_id, locate, transfer
from plmsae.registry.evidence import Evidence
from plmsae.registry.load import PACKAGE_PATH
from plmsae.registry.origin import origin_tags
from plmsae.registry.package import write_mlflow_model, write_package
from plmsae.registry.tracking import flatten
from plmsae.registry.versions import CANDIDATE, EVIDENCE_TAG, artifact_folder, model_id, registry_name
from plmsae.saes import load_folder
from plmsae.saes.config import SaeConfig


@dataclass(frozen=True)
class Registration:
    """A registered version.

    Attributes:
        name: Registered name.
        version: Version number.
        sae_sha256: sha256 of the weights.
        evidence_sha256: Names the SAE and its evaluations.
    """

    name: str
    version: int
    sae_sha256: str
    evidence_sha256: str


def register(evidence: Evidence, root: Path, notes: str = "") -> Registration:
    """Register a SAE with its evidence, or find the version that holds exactly this evidence.

    Args:
        evidence: Verified outputs of the pipeline.
        root: The working folder.
        notes: Free text for the model card.

    Returns:
        The version, which `candidate` points at.

    Raises:
        DataError: The outputs do not fit together.
        TryAgainError: The registry cannot be reached.
    """
    config = load_folder(evidence.sae_folder).config
    name = registry_name(config.plm, config.layer, config.hook, config.architecture)
    tags = evidence.tags(config)
    with connect(root, create=True) as client, tempfile.TemporaryDirectory(prefix="plmsae-") as scratch:
        import mlflow

        number = _existing(client, name, tags[EVIDENCE_TAG])
        if number is None or not _has_files(mlflow, client, name, number, root):
            package = Path(scratch) / "package"
            write_package(package, evidence, config, name, notes)
            model = Path(scratch) / "model"
            write_mlflow_model(model, package, config)
            if number is None:
                number = _create(client, root, name, evidence, tags, config, model)
            else:
                logged = model_id(client.get_model_version(name, str(number)))
                with transfer():
                    client.log_model_artifacts(logged, str(model))
        if client.get_registered_model(name).aliases.get(CANDIDATE) != str(number):
            client.set_registered_model_alias(name, CANDIDATE, str(number))
    return Registration(name, number, tags["sae_sha256"], tags[EVIDENCE_TAG])


def _existing(client: Any, name: str, evidence_sha256: str) -> int | None:
    """The lowest version of a name that carries this evidence."""
    found = client.search_model_versions(f"name = '{name}' and tags.{EVIDENCE_TAG} = '{evidence_sha256}'")
    return min((int(version.version) for version in found), default=None)


def _has_files(mlflow: Any, client: Any, name: str, version: int, root: Path) -> bool:
    source = artifact_folder(client, name, version, locate(root).artifacts)
    return bool(mlflow.artifacts.list_artifacts(artifact_uri=f"{source.rstrip('/')}/{PACKAGE_PATH}"))


def _create(
    client: Any, root: Path, name: str, evidence: Evidence, tags: dict[str, str], config: SaeConfig, model: Path
) -> int:
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    experiment = experiment_id(client, root)
    joined = os.environ.get("MLFLOW_RUN_ID")
    found = client.search_logged_models([experiment], filter_string=f"tags.{EVIDENCE_TAG} = '{tags[EVIDENCE_TAG]}'")
    if found:
        logged = found[0]
    else:
        run_id = joined or _run(client, experiment, tags[EVIDENCE_TAG])
        settings = {key: str(value) for key, value in flatten(_settings(config)).items()}
        logged = client.create_logged_model(
            experiment, name="sae", source_run_id=run_id, tags=tags, params=settings, model_type="sae"
        )
    if str(logged.status) != "READY":
        with transfer():
            client.log_model_artifacts(logged.model_id, str(model))
    known = {metric.key for metric in logged.metrics or ()}
    now = int(time.time() * 1000)
    points = [
        Metric(key, value, now, 0, model_id=logged.model_id)
        for key, value in evidence.metrics().items()
        if key not in known
    ]
    for first in range(0, len(points), 1000):
        client.log_batch(logged.source_run_id, metrics=points[first : first + 1000])
    client.finalize_logged_model(logged.model_id, "READY")
    if not joined:
        client.set_terminated(logged.source_run_id)
    try:
        client.create_registered_model(
            name, description=f"{config.architecture} SAEs on {config.plm}, layer {config.layer} ({config.hook})"
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name,
        f"models:/{logged.model_id}",
        run_id=logged.source_run_id,
        tags={**tags, **origin_tags(evidence, root)},
        description=short_description(evidence, config),
        model_id=logged.model_id,
    )
    first_number = _existing(client, name, tags[EVIDENCE_TAG])
    if first_number is not None and first_number < int(created.version):
        client.delete_model_version(name, str(created.version))  # another process registered it at the same moment
        return first_number
    return int(created.version)


def _run(client: Any, experiment: str, evidence_sha256: str) -> str:
    """The run that the metrics are logged in; one that an interrupted registration left behind is taken up again."""
    tags = {"stage": "register", EVIDENCE_TAG: evidence_sha256}
    left = client.search_runs([experiment], " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items()))
    found = left[0] if left else client.create_run(experiment, run_name="register", tags=tags)
    return str(found.info.run_id)


def _settings(config: SaeConfig) -> dict[str, Any]:
    return {
        "architecture": config.architecture,
        "d_model": config.d_model,
        "dictionary_size": config.dictionary_size,
        "k": config.k,
        "training": dict(config.training),
    }
