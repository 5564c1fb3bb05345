"""Registered versions: names, where a URI points, and the evidence that stands on a version.

A version's evidence is on the MLflow logged model that it was made from: `version.source` is `models:/m-...`, and the
metrics are logged with that model id. Everything here starts from the version alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plmsae.errors import DataError, UserError, did_you_mean

CHAMPION, CANDIDATE, PREVIOUS = "champion", "candidate", "previous"
EVIDENCE_TAG = "evidence_sha256"
# On a version that was rolled back from, until it is champion again: the record of that rollback.
ROLLBACK_TAG = "rollback"
# On a version that was evaluated again: `true` while any of its numbers has drifted, else `false`.
DRIFT_TAG = "drift"
REEVALUATION = "reevaluation"
_MODEL_ID = re.compile(r"models:/(m-[0-9a-f]+)")


@dataclass(frozen=True)
class Registered:
    """One version of a registered SAE.

    Attributes:
        name: Registered name, e.g. `plmsae.esm_small.layer3.topk`.
        version: Version number, from 1.
        aliases: Aliases that point at it, sorted.
        metrics: Every evaluation metric on it, `<evaluation>.<metric>` -> value.
        tags: Where it comes from and what was decided about it.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.version}"


def registry_name(plm: str, layer: int, hook: str, architecture: str) -> str:
    """Name of a registered SAE, e.g. `plmsae.esm2_t6_8M_UR50D.layer4.topk`, or `...layer4_mlp.topk` at another hook.

    The PLM is its base name with anything but letters, digits, `_` and `-` as `_`: MLflow allows no `/` or `:`, and
    dots separate the parts.
    """
    base = re.sub(r"[^A-Za-z0-9_-]", "_", plm.rstrip("/").rpartition("/")[2])
    if not base.strip("_"):
        raise UserError(f"PLM '{plm}' has no name to register a SAE under", fix="give its folder a name")
    place = f"layer{layer}" if hook == "residual" else f"layer{layer}_{hook}"
    return f"plmsae.{base}.{place}.{architecture}"


def list_versions(client: Any, name: str | None = None) -> list[Registered]:
    """All versions registered by plmsae (or of one name), by name and rising version."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'" if name else None, max_results=1000, page_token=token)
        found.extend(version for version in page if EVIDENCE_TAG in version.tags)
        token = page.token
        if not token:
            break
    aliases = {item: aliases_of(client, item) for item in {version.name for version in found}}
    return sorted(
        (_registered(client, version, aliases[version.name]) for version in found),
        key=lambda item: (item.name, item.version),
    )


def get_version(client: Any, name: str, version: int) -> Registered:
    """One version with its evidence.

    Raises:
        UserError: Unknown name or version; the message says what there is.
    """
    found = _model_version(client, name, str(version))
    return _registered(client, found, aliases_of(client, name))


def aliases_of(client: Any, name: str) -> dict[str, int]:
    """Alias -> version number of a registered name."""
    return {str(alias): int(version) for alias, version in client.get_registered_model(name).aliases.items()}


def resolve(client: Any, uri: str) -> tuple[str, int]:
    """Name and version number that `models:/NAME@ALIAS` or `models:/NAME/VERSION` points at.

    Raises:
        UserError: Malformed URI, unknown name, alias or version; the message says what there is.
    """
    rest = uri.removeprefix("models:").lstrip("/")
    name, at, alias = rest.partition("@")
    if not at:
        name, _, number = rest.partition("/")
        if not name or not number.isdecimal():
            raise UserError(
                f"'{uri}' does not say which version",
                fix=f"models:/{name or 'NAME'}@champion, or models:/{name or 'NAME'}/1",
            )
        return name, int(_model_version(client, name, number).version)
    known = aliases_of_known(client, name)
    if alias not in known:
        fix = did_you_mean(alias, known) if known else f"it has none yet; promote a version: plmsae promote {name} 1"
        raise UserError(f"'{name}' has no alias '{alias}'", where=uri, fix=fix)
    return name, known[alias]


def only_champion(client: Any) -> str:
    """URI of the champion when exactly one registered name has one.

    Raises:
        UserError: There is none, or more than one.
    """
    names = [model.name for model in client.search_registered_models() if CHAMPION in model.aliases]
    if len(names) != 1:
        fix = "name one with --model: " + ", ".join(f"models:/{name}@{CHAMPION}" for name in sorted(names))
        raise UserError(
            "several SAEs are champions" if names else "no SAE is champion yet",
            fix=fix if names else "see what is registered with `plmsae models`, then: plmsae promote NAME VERSION",
        )
    return f"models:/{names[0]}@{CHAMPION}"


def model_id(version: Any) -> str:
    """Id of the logged model behind an MLflow `ModelVersion`.

    Raises:
        DataError: The version was not registered by plmsae.
    """
    match = _MODEL_ID.fullmatch(str(version.source))
    if match is None:
        raise DataError(
            f"version {version.version} of '{version.name}' was not registered by plmsae",
            fix="register a SAE with the `register` stage, or pull a version that `plmsae models` lists",
        )
    return match[1]


def artifact_folder(client: Any, name: str, version: int, artifacts: Path | None) -> str:
    """Where the files of a version are.

    Args:
        client: A connected MLflow client.
        name: Registered name.
        version: Version number.
        artifacts: The embedded registry's artifact folder, to find files again after the working folder was moved
            (MLflow stores absolute paths).

    Returns:
        An artifact URI that MLflow can download from.
    """
    logged = client.get_logged_model(model_id(_model_version(client, name, str(version))))
    location = str(logged.artifact_location)
    if artifacts is not None and not Path(location.removeprefix("file://")).is_dir():
        moved = artifacts / "models" / str(logged.model_id) / "artifacts"
        if moved.is_dir():
            return str(moved)
    return location


def _registered(client: Any, version: Any, aliases: dict[str, int]) -> Registered:
    number = int(version.version)
    logged = client.get_logged_model(model_id(version))
    return Registered(
        name=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        # The last one of a metric that was measured again and again.
        metrics={
            metric.key: float(metric.value)
            for metric in sorted(logged.metrics or (), key=lambda m: (m.key, m.step, m.timestamp))
        },
        tags=dict(sorted(version.tags.items())),
    )


def aliases_of_known(client: Any, name: str) -> dict[str, int]:
    """`aliases_of`; an unknown name is a `UserError` that says what there is."""
    from mlflow.exceptions import MlflowException

    try:
        return aliases_of(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    names = [model.name for model in client.search_registered_models()]
    raise UserError(
        f"no SAE is registered as '{name}'",
        fix=did_you_mean(name, names) if names else "nothing is registered yet; run the pipeline: dvc repro",
    )


def _model_version(client: Any, name: str, number: str) -> Any:
    from mlflow.exceptions import MlflowException

    aliases_of_known(client, name)
    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    known = sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))
    raise UserError(
        f"'{name}' has no version {number}", fix=f"it has: {', '.join(map(str, known))}" if known else "register one"
    )
