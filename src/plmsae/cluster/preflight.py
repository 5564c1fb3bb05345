"""Is everything there that a run needs? Asked before a run is created, of everybody who can be asked from here.

What this machine has no address or credentials for is not asked: the pods may well have them. What is asked and is
not there is a failure, and then nothing is created.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from plmsae.artifacts.checksums import sha256_bytes
from plmsae.artifacts.s3 import S3, SCHEME, S3Uri, endpoint
from plmsae.cluster.finding import Finding
from plmsae.cluster.namespace import settings_findings
from plmsae.cluster.package import Package
from plmsae.cluster.submit import check_images, stages_of
from plmsae.cluster.tasks import REGISTRY, SETTINGS_MAP
from plmsae.errors import PlmsaeError, UserError
from plmsae.params import ParamsFile, value_at
from plmsae.stages.catalog import STAGES, raw_addresses, section_values

CHECKS = ("images", "data", "registry", "settings")
# Above this an object is not read to be compared; an upload that says its sha256 is taken at its word.
READ_BYTES = 256 * 2**20
_OF_AWS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


def preflight(
    package: Package,
    file: ParamsFile,
    arguments: Mapping[str, Any],
    *,
    namespace: str | None = None,
    service_account: str | None = None,
    skip: Collection[str] = (),
) -> list[Finding]:
    """Look for everything that a run of a package needs; changes nothing anywhere.

    Args:
        package: The compiled pipeline.
        file: The parameters of the run.
        arguments: Its arguments, from `run_arguments`.
        namespace: Namespace of the run; None where it is not known.
        service_account: Service account of its pods; None takes the installation's.
        skip: Names of checks that are left out.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "images": lambda: _images(package),
        "data": lambda: _data(package, file, arguments),
        "registry": lambda: _registry(package, arguments),
        "settings": lambda: settings_findings(package, namespace, service_account),
    }
    assert tuple(checks) == CHECKS
    found: list[Finding] = []
    for name, check in checks.items():
        if name in skip:
            found.append(Finding(name, "not asked", "left out (--skip)"))
        else:
            found += _guarded(name, check)
    return found


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except PlmsaeError as error:
        yield Finding.of(name, error)


def _images(package: Package) -> Iterator[Finding]:
    for image in package.images:
        try:
            found = check_images([image])[image]
        except PlmsaeError as error:
            yield Finding.of("images", error)
            continue
        if found.warning:
            yield Finding("images", "warning", found.warning)
        else:
            yield Finding("images", "ok", f"{image} is in its registry")


def _data(package: Package, file: ParamsFile, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """Raw files with their checksums, and buckets that are written to."""
    for stage in stages_of(package):
        params = section_values(file, stage)
        for name in stage.source_files:
            if name in arguments:
                where = file.where(f"{stage.section}.{name}")
                yield _guarded_file(str(arguments[name]), arguments.get(f"{name}_sha256") or None, where)
        if stage.repeats:
            where = file.where(f"{stage.section}.source")
            yield _guarded_file(str(arguments["source"]), None, where)
        for name, field in raw_addresses(stage).items():
            address = value_at(params, name)
            if isinstance(address, str):
                where = file.where(field)
                yield _guarded_file(address, value_at(params, f"{name}_sha256"), where)
        extraction = "extract_activations."
        places = ("", extraction, f"{STAGES}.{extraction}")
        stores = [value_at(params, f"{prefix}store") for prefix in places]
        for store in stores:
            if isinstance(store, str) and store:
                yield _guarded_store(store, file.where("extract_activations.store"))


def _guarded_file(address: str, sha256: str | None, where: str) -> Finding:
    try:
        return _file(address, sha256, where)
    except PlmsaeError as error:
        return Finding.of("data", error)


def _file(address: str, sha256: str | None, where: str) -> Finding:
    if not address.startswith(SCHEME):
        return Finding("data", "not asked", f"'{address}' is fetched and compared by the task that reads it", where)
    if not _knows_a_store():
        return _unknown_store(address)
    store, uri = S3(), S3Uri.parse(address, where)
    info = store.head(uri)
    if info is None:
        raise UserError(f"object '{address}' does not exist", where=endpoint(), fix=f"put it there, or correct {where}")
    if info.num_bytes == 0:
        raise UserError(f"object '{address}' is empty", where=endpoint(), fix="put the file there again")
    said = info.metadata.get("sha256")
    if said is None and info.num_bytes <= READ_BYTES:
        said = sha256_bytes(store.get(uri))
    size = f"{info.num_bytes:,} bytes"
    if said is None:
        return Finding(
            "data",
            "warning",
            f"'{address}' is there ({size}), but its sha256 was not compared: it is large, and does not say it itself",
            endpoint(),
            "the task compares it; to be told before: aws s3 cp --metadata sha256=HEX",
        )
    if sha256 is not None and said != sha256:
        raise UserError(
            f"object '{address}' ({size}) has sha256 {said}, not {sha256}",
            where=where,
            fix="name the checksum of the file that is meant (sha256sum FILE), or put that file there",
        )
    return Finding("data", "ok", f"'{address}' is there: {size}, sha256 {said[:12]}...", endpoint())


def _guarded_store(address: str, where: str) -> Finding:
    if not _knows_a_store():
        return _unknown_store(address)
    try:
        S3().head(S3Uri.parse(address, where) / "none")
    except PlmsaeError as error:
        return Finding.of("data", error)
    return Finding("data", "ok", f"the bucket of '{address}' is there", endpoint())


def _knows_a_store() -> bool:
    return any(os.environ.get(name) for name in _OF_AWS)


def _unknown_store(address: str) -> Finding:
    found = f"'{address}': no address or credentials of a store are set here (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...)"
    return Finding("data", "not asked", found)


def _registry(package: Package, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    if not os.environ.get(REGISTRY, "").strip():
        found = f"{REGISTRY} is not set here; the pods take it from ConfigMap {SETTINGS_MAP}"
        yield Finding("registry", "not asked", found)
        return
    from plmsae.registry.connection import connect, locate
    from plmsae.registry.described import describe

    with connect() as client:
        client.search_registered_models(max_results=1)
    yield Finding("registry", "ok", f"{locate().shown} answers")
    if "model" in package.parameters:
        found_sae = describe(str(arguments.get("model") or "") or None)
        yield Finding("registry", "ok", f"the SAE is {found_sae.uri}, layer {found_sae.config.layer}")
