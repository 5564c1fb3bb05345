"""Deletion of a version: never of the one in use or the one to go back to, and never without a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from plmsae.errors import UserError
from plmsae.registry import audit
from plmsae.registry.claim import Claim, claimed
from plmsae.registry.connection import connect
from plmsae.registry.versions import CHAMPION, EVIDENCE_TAG, PREVIOUS, aliases_of, get_version, model_id, resolve

KEPT = {
    CHAMPION: "promote another version, or roll back; then it is no longer champion",
    PREVIOUS: "a rollback needs it; promote another version twice, or keep it",
}


@dataclass(frozen=True)
class Deletion:
    """One deleted version.

    Attributes:
        name: Registered name.
        version: Version number, which is not given again.
        evidence_sha256: What stood on it.
        sae_sha256: sha256 of its weights.
        reason: Why, in the words of whoever did it.
        at: When it was begun, UTC, ISO 8601.
        done: False from the moment it is recorded until the version is gone.
    """

    name: str
    version: int
    evidence_sha256: str
    sae_sha256: str
    reason: str
    at: str
    done: bool

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def delete(name: str, version: int, reason: str = "", root: Path | None = None) -> Deletion:
    """Delete a version and its files from the registry, unless `champion` or `previous` points at it.

    The check and the deletion happen under the claim on the name, so no promotion comes in between. The record, the tag
    `deletion.<number>` of the name, is written first; a deletion that was cut off is finished by the next call, which
    finds its record. MLflow keeps the files of a deleted version until `mlflow gc`.

    Args:
        name: Registered name.
        version: Version number.
        reason: Why; some 4,000 ASCII characters at most.
        root: The working folder.

    Returns:
        What was deleted.

    Raises:
        UserError: Unknown name or version, a version that is kept, or a reason that is too long.
        TryAgainError: The registry cannot be reached, or another process works on this name for minutes.
    """
    with connect(root) as client:
        resolve(client, f"models:/{name}/{version}")
        with claimed(client, name, "a deletion") as claim:
            return _delete(claim, version, reason)


def _delete(claim: Claim, version: int, reason: str) -> Deletion:
    client, name = claim.client, claim.name
    found = get_version(client, name, version)
    aliases = aliases_of(client, name)
    for alias, fix in KEPT.items():
        if aliases.get(alias) == version:
            raise UserError(f"version {version} of '{name}' is {alias} and is not deleted", fix=fix)
    history = audit.records(client.get_registered_model(name).tags, audit.DELETION, name)
    # A version that is still there was not deleted by the record of it.
    cut_off = [number for number, record in history.items() if record.get("version") == version]
    number = cut_off[-1] if cut_off else max(history, default=0) + 1
    tags = found.tags
    plan = Deletion(
        name, version, tags.get(EVIDENCE_TAG, ""), tags.get("sae_sha256", ""), reason, audit.now(), done=False
    )
    audit.write(client, name, audit.DELETION, number, plan.record())
    claim.check()
    logged = model_id(client.get_model_version(name, str(version)))
    client.delete_model_version(name, str(version))
    others = client.search_model_versions(f"name = '{name}'", max_results=1000)
    if not any(str(other.source) == f"models:/{logged}" for other in others):
        client.delete_logged_model(logged)
    done = replace(plan, done=True)
    audit.write(client, name, audit.DELETION, number, done.record())
    return done
