"""Pipelines on the server: each is uploaded once per content, since the name of a version is made from its bytes."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plmsae.cluster.package import Package
from plmsae.errors import DataError


def upload(client: Any, package: Package) -> tuple[str, str, bool]:
    """Put a package there unless it is there; the caller translates errors (`plmsae.cluster.connection.translated`).

    Args:
        client: From `connect`.
        package: The compiled pipeline.

    Returns:
        Id of the pipeline, id of the version with this content, and whether it was uploaded now.
    """
    pipeline_id = _pipeline(client, package.name)
    return pipeline_id, *_version(client, pipeline_id, package)


def experiment_id(client: Any, name: str) -> str:
    """Id of an experiment, which is created if there is none."""
    import kfp_server_api

    def create() -> Any:
        return client.create_experiment(name, namespace=namespace_of(client))

    try:
        found = create()
    except kfp_server_api.ApiException as error:
        if error.status != 409:
            raise
        # Someone else made it a moment ago; it is looked for before it is created.
        found = create()
    return identifier(found, "experiment_id")


def identifier(answer: Any, name: str) -> str:
    """A field of an answer that must be there.

    Raises:
        DataError: It is not.
    """
    value = getattr(answer, name, None)
    if not isinstance(value, str) or not value:
        raise DataError(
            f"the answer of Kubeflow Pipelines holds no {name}",
            fix="look whether a proxy stands before it; it must be Kubeflow Pipelines 2",
        )
    return value


def equals(key: str, value: str) -> str:
    """A filter of the API."""
    # 1 is EQUALS in KFP's filter.proto.
    return json.dumps({"predicates": [{"operation": 1, "key": key, "stringValue": value}]})


def namespace_of(client: Any) -> str | None:
    """The namespace of the client; None where users are not kept apart."""
    return client.get_user_namespace() or None


@contextmanager
def silent() -> Iterator[None]:
    """Keep what KFP's client prints off the screen: standard output is ours, and may be JSON."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _pipeline(client: Any, name: str) -> str:
    """Id of the pipeline; an empty one is created, so that every version of it has the name of its content."""
    import kfp_server_api

    def find() -> str | None:
        query = equals("display_name", name)
        found = client.list_pipelines(page_size=100, filter=query, namespace=namespace_of(client)).pipelines
        return next((identifier(item, "pipeline_id") for item in found or () if item.display_name == name), None)

    if (known := find()) is not None:
        return known
    pipeline = kfp_server_api.V2beta1Pipeline(display_name=name, namespace=namespace_of(client))
    try:
        return identifier(client.pipelines.pipeline_service_create_pipeline(pipeline=pipeline), "pipeline_id")
    except kfp_server_api.ApiException as error:
        # Someone else made it a moment ago.
        if error.status == 409 and (known := find()) is not None:
            return known
        raise


def _version(client: Any, pipeline_id: str, package: Package) -> tuple[str, bool]:
    """Id of the version with the content of `package`, and whether it was uploaded now."""
    import kfp_server_api

    def find() -> str | None:
        query = equals("display_name", package.version)
        found = client.list_pipeline_versions(pipeline_id, page_size=100, filter=query)
        versions = [item for item in found.pipeline_versions or () if item.display_name == package.version]
        return identifier(versions[0], "pipeline_version_id") if versions else None

    if (known := find()) is not None:
        return known, False
    with tempfile.TemporaryDirectory(prefix="plmsae-") as scratch:
        file = Path(scratch, "pipeline.yaml")
        file.write_bytes(package.text)
        try:
            made = client.upload_pipeline_version(str(file), package.version, pipeline_id=pipeline_id)
        except kfp_server_api.ApiException as error:
            if error.status == 409 and (known := find()) is not None:
                return known, False
            raise
    return identifier(made, "pipeline_version_id"), True
