"""Hands a compiled pipeline to Kubeflow Pipelines and starts a run of it.

Everything that can be wrong is looked for before anything is created there. A pipeline is uploaded once per content:
the name of a version is made from its bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plmsae.artifacts.sources import is_remote
from plmsae.cluster.connection import translated
from plmsae.cluster.images import Found, look_up, parse_reference
from plmsae.cluster.package import Package
from plmsae.cluster.sections import pipeline_arguments
from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.params import ParamsFile, canonical_json, value_at
from plmsae.stages.catalog import load_params, stages
from plmsae.stages.components import EXAMPLE_HOST, function_name
from plmsae.stages.executor_input import PARAMS
from plmsae.stages.spec import Stage


@dataclass(frozen=True)
class Submission:
    """A run that was started, and what it was made of; `uploaded` is False if the package was there already."""

    host: str
    pipeline: str
    pipeline_id: str
    version: str
    version_id: str
    uploaded: bool
    experiment: str
    experiment_id: str
    run_id: str
    run_name: str
    arguments: Mapping[str, Any]

    @property
    def url(self) -> str:
        """The page of the run."""
        return f"{self.host}/#/runs/details/{self.run_id}"

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "url": self.url}


def stages_of(package: Package) -> list[Stage]:
    """The stages that a pipeline runs, told by its parameters."""
    return [stage for stage in stages().values() if f"{function_name(stage)}_{PARAMS}" in package.parameters]


def run_arguments(package: Package, file: ParamsFile, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a run of `package` with the parameters of `file`, checked against what the package declares.

    Args:
        package: The compiled pipeline.
        file: The parameters, `overrides` applied.
        overrides: The overrides once more: each must concern a stage of the pipeline.

    Raises:
        UserError: A wrong, missing or unknown parameter, an override that nothing would read, or a raw file that is
            not where a cluster can read it.
    """
    used = stages_of(package)
    for override in overrides:
        key = override.partition("=")[0]
        read = [section for stage in used for section in (stage.section, *stage.inherits)]
        if not any(f"{key}.".startswith(f"{section}.") for section in read):
            raise UserError(
                f"pipeline '{package.name}' has no stage that reads '{key}'",
                where=f"--set {override}",
                fix=did_you_mean(key.rpartition(".")[0], read),
            )
        if any(f"{key}.".startswith(f"{decided}.") for stage in used for decided in stage.decides):
            raise UserError(
                f"pipeline '{package.name}' does not ask for '{key}': the SAE says it",
                where=f"--set {override}",
                fix="leave it out; the SAE is the one of --set resolve.model=models:/NAME@ALIAS",
            )
    arguments = pipeline_arguments(file, [stage.id for stage in used])
    for stage in used:
        for name in stage.source_files:
            source, field = arguments.get(name), f"{stage.section}.{name}"
            if name in package.parameters and isinstance(source, str) and not is_remote(source):
                raise UserError(
                    f"parameter '{field}' = '{source}' is a file of this machine, which a cluster cannot read",
                    where=file.where(field),
                    fix=f"copy it to a bucket; pass --set {field}=s3://BUCKET/KEY and --set {field}_sha256=HEX "
                    "(the first column of: sha256sum FILE)",
                )
            digest = f"{name}_sha256"
            if digest in package.parameters and package.parameters[digest].required and not arguments.get(digest):
                raise UserError(
                    f"parameter '{digest}' is missing: a cluster must know which bytes '{source}' holds",
                    where=file.where(f"{field}_sha256"),
                    fix=f"pass --set {field}_sha256=HEX, the first column of: sha256sum FILE",
                )
        for name in stage.optional_files:
            value, field = value_at(load_params(file, stage), name), f"{stage.section}.{name}"
            if isinstance(value, str) and not is_remote(value):
                raise UserError(
                    f"parameter '{field}' = '{value}' is of this machine, which a cluster cannot read",
                    where=file.where(field),
                    fix=f"copy it to a bucket and pass --set {field}=s3://BUCKET/KEY, or leave it out",
                )
    package.check(arguments)
    return arguments


def check_images(images: Sequence[str]) -> dict[str, Found]:
    """Look every image up in its registry.

    Raises:
        UserError: One is not there.
        TryAgainError: A registry does not answer.
    """
    found = {}
    for image in images:
        reference = parse_reference(image)
        if reference.registry == EXAMPLE_HOST:
            raise UserError(
                f"image '{image}' is the example that packages are committed with",
                where="the compiled pipeline",
                fix="compile it with your own: pass --image REPOSITORY@sha256:DIGEST in place of --package",
            )
        found[image] = look_up(reference)
    return found


def pinned(image: str) -> str:
    """The same image by digest, if its registry tells; Kubeflow caches by the text of the reference."""
    reference = parse_reference(image)
    if reference.digest or reference.registry == EXAMPLE_HOST:
        return image
    digest = look_up(reference).digest
    return reference.pinned(digest) if digest else image


def start(
    client: Any,
    host: str,
    package: Package,
    arguments: Mapping[str, Any],
    *,
    experiment: str,
    run_name: str | None = None,
    service_account: str | None = None,
) -> Submission:
    """Upload the package unless it is there, and create the run.

    Args:
        client: From `connect`; its namespace is the run's.
        host: The address, for the link.
        package: The compiled pipeline.
        arguments: From `run_arguments`.
        experiment: Name of the experiment; created if there is none.
        run_name: Name of the run; by default made from the version and the arguments.
        service_account: Service account of its pods; by default the installation's.

    Raises:
        UserError: The server refuses.
        TryAgainError: The server fails or goes away. What was uploaded stays, and is met again.
    """
    if run_name is None:
        run_name = f"{package.version}-{hashlib.sha256(canonical_json(arguments).encode()).hexdigest()[:8]}"
    with translated(host), _silent():
        pipeline_id = _pipeline(client, package.name)
        version_id, uploaded = _version(client, pipeline_id, package)
        experiment_id = _id(client.create_experiment(experiment, namespace=_namespace(client)), "experiment_id")
        run = client.run_pipeline(
            experiment_id=experiment_id,
            job_name=run_name,
            params=dict(arguments),
            pipeline_id=pipeline_id,
            version_id=version_id,
            service_account=service_account,
        )
    return Submission(
        host=host,
        pipeline=package.name,
        pipeline_id=pipeline_id,
        version=package.version,
        version_id=version_id,
        uploaded=uploaded,
        experiment=experiment,
        experiment_id=experiment_id,
        run_id=_id(run, "run_id"),
        run_name=run_name,
        arguments=dict(arguments),
    )


def _pipeline(client: Any, name: str) -> str:
    """Id of the pipeline; an empty one is created, so that every version of it has the name of its content."""
    import kfp_server_api

    def find() -> str | None:
        found = client.list_pipelines(page_size=100, filter=_named(name), namespace=_namespace(client)).pipelines
        return next((_id(item, "pipeline_id") for item in found or () if item.display_name == name), None)

    if (known := find()) is not None:
        return known
    pipeline = kfp_server_api.V2beta1Pipeline(display_name=name, namespace=_namespace(client))
    try:
        return _id(client.pipelines.pipeline_service_create_pipeline(pipeline=pipeline), "pipeline_id")
    except kfp_server_api.ApiException as error:
        # Someone else made it a moment ago.
        if error.status == 409 and (known := find()) is not None:
            return known
        raise


def _version(client: Any, pipeline_id: str, package: Package) -> tuple[str, bool]:
    """Id of the version with the content of `package`, and whether it was uploaded now."""
    import kfp_server_api

    def find() -> str | None:
        found = client.list_pipeline_versions(pipeline_id, page_size=100, filter=_named(package.version))
        versions = [item for item in found.pipeline_versions or () if item.display_name == package.version]
        return _id(versions[0], "pipeline_version_id") if versions else None

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
    return _id(made, "pipeline_version_id"), True


def _named(name: str) -> str:
    # 1 is EQUALS in KFP's filter.proto.
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _namespace(client: Any) -> str | None:
    return client.get_user_namespace() or None


def _id(answer: Any, name: str) -> str:
    value = getattr(answer, name, None)
    if not isinstance(value, str) or not value:
        raise DataError(
            f"the answer of Kubeflow Pipelines holds no {name}",
            fix="look whether a proxy stands before it; it must be Kubeflow Pipelines 2",
        )
    return value


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what KFP's client prints off the screen: standard output is ours, and may be JSON."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
