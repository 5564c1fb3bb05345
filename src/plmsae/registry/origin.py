"""Where a version comes from, as tags on it: git, image, Kubeflow run, DVC, and the checksums of all that went in.

What cannot be known is left out, never guessed; `plmsae lineage` then says "not recorded".
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256
from plmsae.params import canonical_json
from plmsae.registry.evidence import Evidence

GIT_TAG, DIRTY_TAG, IMAGE_TAG, KFP_TAG = "git_sha", "git_dirty", "image", "kfp_run_id"
DATA_TAG, MANIFESTS_TAG, FILES_TAG, DVC_TAG = "data_sha256", "manifests", "raw_files", "dvc"
# Tag of a version -> environment variable that the pipeline sets for the task.
_RUN_TAGS = {IMAGE_TAG: "PLMSAE_IMAGE_REF", KFP_TAG: "KFP_RUN_ID"}
COMMIT_VARIABLE = "PLMSAE_GIT_COMMIT"  # of the code in the image: there is no repository in it


def origin_tags(evidence: Evidence, root: Path) -> dict[str, str]:
    """Tags for a new version: where and from what it was made, as far as that is known here."""
    tags = run_tags(root)
    tags[MANIFESTS_TAG] = canonical_json(manifests(evidence))
    files = {
        f"{port}.{name}": sha256
        for port, manifest in evidence.manifests.items()
        for name, sha256 in manifest.source_files.items()
    }
    if files:
        tags[FILES_TAG] = canonical_json(files)
    if data := str(evidence.source().get("sha256", "")):
        tags[DATA_TAG] = data
    if outputs := dvc_hashes(evidence, root):
        tags[DVC_TAG] = canonical_json(outputs)
    return tags


def run_tags(root: Path) -> dict[str, str]:
    """Image, Kubeflow run and git commit of what runs here."""
    tags = {tag: value for tag, variable in _RUN_TAGS.items() if (value := os.environ.get(variable, "").strip())}
    return {**tags, **_git_tags(root)}


def manifests(evidence: Evidence) -> dict[str, str]:
    """Port -> sha256 of the manifest, of every output that went in and of what those were made from."""
    found = {
        port: sha256 for manifest in evidence.manifests.values() for port, sha256 in sorted(manifest.inputs.items())
    }
    return {**found, **{port: manifest_sha256(folder) for port, folder in evidence.folders.items()}}


def dvc_hashes(evidence: Evidence, root: Path) -> dict[str, str]:
    """What DVC calls the outputs and raw files: port or path -> its md5, as in `dvc.lock`.

    An output counts if DVC's cache says that the entry of `dvc.lock` holds exactly this manifest; one that was made by
    `plmsae run`, or changed since, does not. Empty where DVC is not used.
    """
    lock = _yaml(root / "dvc.lock").get("stages")
    cache = _dvc_cache(root)
    found: dict[str, str] = {}
    for port, folder in evidence.folders.items():
        for stage in lock.values() if isinstance(lock, dict) else ():
            for out in stage.get("outs", ()):
                digest = str(out.get("md5", ""))
                if (root / str(out.get("path"))).resolve() == folder.resolve() and _holds(cache, digest, folder):
                    found[port] = digest
                    found.update(_raw(stage, root))
    return dict(sorted(found.items()))


def _raw(stage: dict[str, Any], root: Path) -> dict[str, str]:
    """The dependencies of a stage that are neither code nor outputs: raw files."""
    outputs, code = (root / "outputs").resolve(), (root / "src").resolve()
    found = {}
    for dependency in stage.get("deps", ()):
        path = (root / str(dependency.get("path"))).resolve()
        if "md5" in dependency and not path.is_relative_to(outputs) and not path.is_relative_to(code):
            found[str(dependency["path"])] = str(dependency["md5"])
    return found


def _holds(cache: Path, digest: str, folder: Path) -> bool:
    """Whether DVC's directory object `<md5>.dir` lists the manifest that lies in the folder."""
    try:
        listed = json.loads((cache / "files" / "md5" / digest[:2] / digest[2:]).read_text(encoding="utf-8"))
        own = hashlib.md5((folder / MANIFEST_NAME).read_bytes(), usedforsecurity=False).hexdigest()
        return any(entry["relpath"] == MANIFEST_NAME and entry["md5"] == own for entry in listed)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _dvc_cache(root: Path) -> Path:
    """Where DVC keeps its objects: `.dvc/cache`, or what `dvc cache dir` said."""
    place = root / ".dvc"
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        config.read([place / "config", place / "config.local"], encoding="utf-8")
        return place / config.get("cache", "dir", fallback="cache")
    except (configparser.Error, UnicodeDecodeError):
        return place / "cache"


def _yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return data if isinstance(data, dict) else {}


def _git_tags(root: Path) -> dict[str, str]:
    """Commit of the code and whether it had changes: of the image if it says so, otherwise of the working folder."""
    built = os.environ.get(COMMIT_VARIABLE, "").strip()
    if built and built != "unknown":
        commit = built.removesuffix("-dirty")
        return {GIT_TAG: commit, DIRTY_TAG: "true" if commit != built else "false"}

    def git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    if not (head := git("rev-parse", "HEAD")):
        return {}
    return {GIT_TAG: head, DIRTY_TAG: "true" if git("status", "--porcelain", "-uno") else "false"}
