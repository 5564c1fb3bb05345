"""Lineage: from a version to all that it was made from, and from any of that back to the versions.

Forward, a version's tags name checksums, git, image, runs and DVC; its package holds `lineage.json`, the parameters,
inputs and environment of every stage. Back, the tags of all versions are searched for a checksum, commit, run or image.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plmsae.artifacts.checksums import sha256_file
from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256, read_manifest
from plmsae.errors import DataError, UserError
from plmsae.registry import audit
from plmsae.registry.connection import connect, locate
from plmsae.registry.evidence import Evidence
from plmsae.registry.json_files import read_json
from plmsae.registry.load import PACKAGE_PATH
from plmsae.registry.origin import (
    DATA_TAG,
    DIRTY_TAG,
    DVC_TAG,
    FILES_TAG,
    GIT_TAG,
    IMAGE_TAG,
    KFP_TAG,
    MANIFESTS_TAG,
)
from plmsae.registry.versions import (
    CANDIDATE,
    CHAMPION,
    EVIDENCE_TAG,
    Registered,
    aliases_of_known,
    artifact_folder,
    get_version,
    resolve,
)

LINEAGE_FILE = "lineage.json"
MIN_CHARACTERS = 7
# Tag with one value -> what it is; what a version can be found by.
_FACTS = {
    DATA_TAG: "data",
    "data_manifest_sha256": "manifest of sequences",
    "activations_manifest_sha256": "manifest of activations",
    "sae_manifest_sha256": "manifest of sae",
    "sae_sha256": "weights",
    EVIDENCE_TAG: "evidence",
    "evaluation_sha256": "evaluation",
    "params_sha256": "parameters",
    "plm_revision": "revision of the PLM",
    GIT_TAG: "git commit",
    IMAGE_TAG: "image",
    KFP_TAG: "Kubeflow run",
}
# Tag that holds an object of values -> what each of them is.
_TABLES = {MANIFESTS_TAG: "manifest of {}", FILES_TAG: "raw file {}", DVC_TAG: "{} in DVC"}


def stage_records(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """Port -> stage, checksum, parameters, inputs, raw files and environment; a function of the evidence alone."""
    return {
        port: {
            "stage": manifest.stage,
            "manifest_sha256": manifest_sha256(evidence.folders[port]),
            "params": manifest.params,
            "inputs": manifest.inputs,
            "source_files": manifest.source_files,
            "environment": manifest.environment,
        }
        for port, manifest in sorted(evidence.manifests.items())
    }


def lineage(model: str, root: Path | None = None) -> dict[str, Any]:
    """All that is recorded about where a version comes from.

    Args:
        model: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a name: then its champion, or else its candidate.
        root: The working folder.

    Returns:
        JSON form. What was not recorded is None.

    Raises:
        UserError: Unknown name, alias or version.
        DataError: The version's record of its stages is damaged, or the registry's tags contradict it.
        TryAgainError: The registry cannot be reached.
    """
    with connect(root) as client:
        name, number = _resolve(client, model)
        version = get_version(client, name, number)
        raw = client.get_model_version(name, str(number))
        package, recorded = _from_package(client, version, root)
        history = _history(client, version)
    tags, source = version.tags, recorded.get("source") or {}
    manifests = _table(tags, MANIFESTS_TAG) or {}
    for port, sha256 in package.items():
        if manifests.get(port, sha256) != sha256:
            raise DataError(
                f"the manifest of '{port}' is {manifests[port]} in the registry's tags, but {sha256} in the package",
                where=version.uri,
                fix="somebody edited the tag 'manifests', or the files: pull the version and verify it",
            )
    manifests = {**manifests, **package}
    stages = recorded.get("stages") or {}
    return {
        "name": name,
        "version": number,
        "uri": version.uri,
        "aliases": list(version.aliases),
        "registered_at": datetime.fromtimestamp(raw.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        "sha256": {
            "weights": tags.get("sae_sha256"),
            "evidence": tags.get(EVIDENCE_TAG),
            "evaluation": tags.get("evaluation_sha256"),
            "parameters": tags.get("params_sha256"),
        },
        "code": {
            "git_commit": tags.get(GIT_TAG),
            "git_dirty": {"true": True, "false": False}.get(tags.get(DIRTY_TAG, "")),
            "image": tags.get(IMAGE_TAG),
            "image_digest": _digest(tags.get(IMAGE_TAG)),
            "plmsae": tags.get("plmsae_version") or None,
        },
        "data": {
            "source": tags.get("data_source") or None,
            "release": tags.get("data_release") or None,
            "licence": source.get("licence") or None,
            "sha256": tags.get(DATA_TAG) or source.get("sha256") or None,
            "raw_files": _table(tags, FILES_TAG),
        },
        "plm": {
            "name": tags.get("plm"),
            "revision": tags.get("plm_revision"),
            "layer": int(tags["layer"]) if tags.get("layer") else None,
            "hook": tags.get("hook"),
        },
        "dvc": _table(tags, DVC_TAG),
        "runs": {"kfp_run_id": tags.get(KFP_TAG), "kfp_run_url": None, "mlflow_run_id": raw.run_id or None},
        "stages": {port: _stage(sha256, stages.get(port)) for port, sha256 in sorted(manifests.items())},
        "history": history,
    }


def derived_from(of: str, root: Path | None = None) -> list[dict[str, Any]]:
    """The versions that came from something, by name and rising version.

    Args:
        of: A checksum (of data, a manifest, weights, parameters, a PLM's revision, an md5 of DVC), a git commit, an
            image or its digest, or the id of a Kubeflow run; its first 7 characters are enough.
        root: The working folder.

    Returns:
        One row per version: name, version, uri, aliases, and `what` matched.

    Raises:
        UserError: `of` is too short to say anything.
        TryAgainError: The registry cannot be reached.
    """
    wanted = _bare(of)
    if len(wanted) < MIN_CHARACTERS:
        raise UserError(f"'{of}' could be anything", where="--of", fix=f"give {MIN_CHARACTERS} characters or more")
    rows = []
    with connect(root) as client:
        aliases: dict[str, dict[str, int]] = {}
        for version in _all(client):
            what = sorted({name for name, value in _facts(version.tags) if _bare(value).startswith(wanted)})
            if what:
                name, number = str(version.name), int(version.version)
                known = aliases.setdefault(name, aliases_of_known(client, name))
                rows.append(
                    {
                        "name": name,
                        "version": number,
                        "uri": f"models:/{name}/{number}",
                        "aliases": sorted(alias for alias, target in known.items() if target == number),
                        "what": what,
                    }
                )
    return sorted(rows, key=lambda row: (row["name"], row["version"]))


def _resolve(client: Any, model: str) -> tuple[str, int]:
    if model.startswith("models:"):
        return resolve(client, model)
    known = aliases_of_known(client, model)
    for alias in (CHAMPION, CANDIDATE):
        if alias in known:
            return model, known[alias]
    raise UserError(f"'{model}' has neither a champion nor a candidate", fix=f"name a version: models:/{model}/1")


def _from_package(client: Any, version: Registered, root: Path | None) -> tuple[dict[str, str], dict[str, Any]]:
    """Manifests of the inputs, and the record of the stages: empty for versions from before it was kept."""
    import mlflow

    source = artifact_folder(client, version.name, version.version, locate(root).artifacts)
    base = f"{source.rstrip('/')}/{PACKAGE_PATH}"
    present = {Path(item.path).name for item in mlflow.artifacts.list_artifacts(artifact_uri=base)}
    with tempfile.TemporaryDirectory(prefix="plmsae-") as scratch:
        folder = Path(scratch)
        for name in (MANIFEST_NAME, LINEAGE_FILE):
            if name in present:
                mlflow.artifacts.download_artifacts(artifact_uri=f"{base}/{name}", dst_path=scratch)
        if MANIFEST_NAME not in present:
            return {}, {}
        manifest = read_manifest(folder)
        if (entry := manifest.files.get(LINEAGE_FILE)) is None:
            return manifest.inputs, {}
        path = folder / LINEAGE_FILE
        if not path.is_file() or sha256_file(path) != entry.sha256:
            raise DataError(
                f"the record '{LINEAGE_FILE}' of version {version.version} of '{version.name}' is missing or damaged",
                where=version.uri,
                fix="the registry's copy is damaged: run the register stage again",
            )
        return manifest.inputs, read_json(path)


def _stage(sha256: str, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    found = recorded or {}
    environment = found.get("environment") or {}
    return {
        "stage": found.get("stage"),
        "manifest_sha256": sha256,
        "code_sha256": environment.get("code_sha256"),
        "inputs": found.get("inputs"),
        "params": found.get("params"),
        "source_files": found.get("source_files"),
        "environment": found.get("environment"),
    }


def _history(client: Any, version: Registered) -> list[dict[str, Any]]:
    """Promotions and rollbacks of the name that are about this version, oldest first."""
    tags = client.get_registered_model(version.name).tags
    found = [
        {"kind": kind, **record}
        for kind in (audit.PROMOTION, audit.ROLLBACK)
        for record in audit.records(tags, kind, version.name).values()
        if version.version in (record.get("version"), record.get("to_version"), record.get("from_version"))
    ]
    return sorted(found, key=lambda record: str(record.get("at", "")))


def _all(client: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(max_results=1000, page_token=token)
        found.extend(version for version in page if EVIDENCE_TAG in version.tags)
        if not (token := page.token):
            return found


def _facts(tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """(what it is, value) of everything that a version can be found by."""
    found = [(label, tags[tag]) for tag, label in _FACTS.items() if tags.get(tag)]
    for tag, label in _TABLES.items():
        found += [(label.format(key), str(value)) for key, value in (_table(tags, tag) or {}).items()]
    return found


def _table(tags: Mapping[str, str], tag: str) -> dict[str, str] | None:
    """The object that a tag holds; None if it is not recorded, or was edited into something else."""
    try:
        data = json.loads(tags[tag])
    except (KeyError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _digest(image: str | None) -> str | None:
    return image.rpartition("@")[2] if image and "@sha256:" in image else None


def _bare(value: str) -> str:
    """Without what stands before a checksum: `registry/image@sha256:ab` and `sha256:ab` are `ab`."""
    return value.strip().lower().rpartition("sha256:")[2].removesuffix(".dir")
