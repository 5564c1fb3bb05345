"""Hands a compiled pipeline to Kubeflow Pipelines and starts a run of it.

Everything that can be wrong is looked for before anything is created there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plmsae.artifacts.sources import is_remote
from plmsae.cluster.connection import translated
from plmsae.cluster.images import Found, look_up, parse_reference
from plmsae.cluster.package import Package
from plmsae.cluster.sections import pipeline_arguments
from plmsae.cluster.uploads import experiment_id, identifier, silent, upload
from plmsae.errors import UserError, did_you_mean
from plmsae.params import ParamsFile, canonical_json, value_at
from plmsae.stages.catalog import raw_addresses, section_values, sections_read, stages
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
    declared = package.parameters
    return [
        stage
        for stage in stages().values()
        if f"{function_name(stage)}_{PARAMS}" in declared
        or (stage.wired and any(name in declared for name in stage.knobs if name not in stage.wired))
    ]


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
        read = [section for stage in used for section in sections_read(stage)]
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
        if stage.repeats and not is_remote(newest := str(arguments["source"])):
            raise UserError(
                f"the newest proteins are '{newest}', a file of this machine, which a cluster cannot read",
                where=file.where(f"{stage.section}.source"),
                fix=f"pass --set {stage.section}.source=s3://BUCKET/KEY, or an address that is asked for its newest "
                "bytes each time: https://HOST/PATH",
            )
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
        for name, field in raw_addresses(stage).items():
            value = value_at(section_values(file, stage), name)
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
    with translated(host), silent():
        pipeline_id, version_id, uploaded = upload(client, package)
        in_experiment = experiment_id(client, experiment)
        run = client.run_pipeline(
            experiment_id=in_experiment,
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
        experiment_id=in_experiment,
        run_id=identifier(run, "run_id"),
        run_name=run_name,
        arguments=dict(arguments),
    )
