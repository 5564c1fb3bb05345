"""A stage as a Kubeflow task: reads the executor input of its container and writes what Kubeflow reads back.

The executor input is the JSON text that KFP puts into the command of a container component: parameter values, and
for every artifact a URI that its launcher has brought to, or will take from, a local path. Nothing here needs kfp.

Kubeflow's cache looks at parameter values and never at bytes. Therefore every input port `p` comes with a parameter
`p_sha256`, the manifest checksum that the producing task returned: it makes the cache key depend on the contents, and
it is verified here.
"""

from __future__ import annotations

import json
import os
import shutil
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from plmsae.artifacts.atomic import write_text
from plmsae.artifacts.manifest import MANIFEST_NAME, manifest_sha256
from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.params import Params, canonical_json, validate
from plmsae.stages.execute import execute
from plmsae.stages.spec import Stage, StageResult, ValueType, value_text

STATE_VARIABLE = "PLMSAE_STATE"
OUTPUT, METRICS, SUMMARY, REPORT = "output", "metrics", "summary", "report"
PARAMS, MANIFEST = "params", "manifest_sha256"
# Where KFP's launcher puts the objects of a store.
_MOUNTS = {"gs://": "/gcs/", "s3://": "/s3/", "minio://": "/minio/"}


@dataclass(frozen=True)
class ExecutorInput:
    """The executor input of one task.

    Attributes:
        parameters: Input parameter -> value.
        inputs: Input artifact -> folder.
        outputs: Output artifact -> path to write.
        output_parameters: Output parameter -> file to write its value to.
        output_file: Where the executor output is written.
        artifacts: Output artifact -> its description, to be given back with metadata.
    """

    parameters: Mapping[str, Any]
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    output_parameters: Mapping[str, Path]
    output_file: Path
    artifacts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def parse(cls, text: str) -> ExecutorInput:
        """Read the JSON text.

        Raises:
            UserError: It is not an executor input.
        """
        try:
            data = json.loads(text)
            inputs, outputs = data.get("inputs", {}), data["outputs"]
            artifacts = {name: dict(item["artifacts"][0]) for name, item in outputs.get("artifacts", {}).items()}
            return cls(
                parameters=dict(inputs.get("parameterValues", {})),
                inputs={
                    name: local_path(item["artifacts"][0]["uri"]) for name, item in inputs.get("artifacts", {}).items()
                },
                outputs={name: local_path(item["uri"]) for name, item in artifacts.items()},
                output_parameters={
                    name: Path(item["outputFile"]) for name, item in outputs.get("parameters", {}).items()
                },
                output_file=Path(outputs["outputFile"]),
                artifacts=artifacts,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"the executor input is not one of Kubeflow Pipelines: {type(error).__name__} {error}",
                where="--executor-input",
                fix="leave this option to the compiled pipeline; by hand: plmsae run STAGE --set SECTION.KEY=VALUE",
            ) from error

    def write_output(self, metadata: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, ValueType]) -> None:
        """Write the executor output: every output artifact with its metadata, and the output parameters.

        Args:
            metadata: Output artifact -> metadata; the UI shows those of `Metrics`.
            parameters: Output parameter -> value.
        """
        for name, value in parameters.items():
            write_text(self.output_parameters[name], value_text(value))
        output = {
            "parameterValues": dict(parameters),
            "artifacts": {
                name: {"artifacts": [{**item, "metadata": {**item.get("metadata", {}), **metadata.get(name, {})}}]}
                for name, item in self.artifacts.items()
            },
        }
        write_text(self.output_file, json.dumps(output, sort_keys=True))


def local_path(uri: str) -> Path:
    """Where KFP's launcher has an artifact: `s3://b/k` is at `/s3/b/k`; a local URI is its path."""
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri.removeprefix("file://"))


def run_task(stage: Stage, text: str, *, root: Path, nodes: Any = None) -> tuple[StageResult, Path]:
    """Run a stage as a Kubeflow task.

    Args:
        stage: Its declaration.
        text: The executor input.
        root: The working folder, from which relative paths in parameters start.
        nodes: Starts processes on other machines, a `plmsae.training.nodes.Nodes`; None where there are none.

    Returns:
        What the stage returned, and its output folder.

    Raises:
        UserError: Parameters of the wrong type or name, a raw file without a checksum, an input that is not there.
        DataError: An input whose contents are not those that its producer returned.
    """
    task = ExecutorInput.parse(text)
    params = resolve_params(stage, task.parameters)
    without = [port.name for port in stage.inputs if port.optional and port.name not in task.inputs]
    for port in stage.inputs:
        if port.name not in without:
            _check_input(stage, port.name, task)
    output = task.outputs[OUTPUT]
    beside = output.parent / f".{output.name}.partial"
    state = Path(os.environ.get(STATE_VARIABLE) or root / ".plmsae")
    try:
        result = execute(
            stage,
            params,
            root=root,
            inputs={port.name: task.inputs[port.name] for port in stage.inputs if port.name not in without},
            without=without,
            output=output,
            state=state,
            staging=beside,
            pinned=True,
            nodes=nodes,
        )
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sha256 = manifest_sha256(output)
    copies = {METRICS: "metrics.json", SUMMARY: "summary.md", **({REPORT: stage.report} if stage.report else {})}
    for name, file in copies.items():
        task.outputs[name].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output / file, task.outputs[name])
    values = {value.name: result.values[value.name] for value in stage.values}
    task.write_output(
        {METRICS: dict(result.metrics), OUTPUT: {**values, "stage": stage.id, "kind": stage.kind, MANIFEST: sha256}},
        {**values, MANIFEST: sha256},
    )
    return result, output


def resolve_params(stage: Stage, values: Mapping[str, Any]) -> Params:
    """The stage's parameters from those of the task: the section as JSON text, and its knobs.

    Args:
        stage: Its declaration.
        values: Parameter values of the task; those that name a checksum of an input are left out.

    Raises:
        UserError: The section is not JSON, a knob stands in it as well, or a value is of the wrong type.
    """
    form = f"{stage.section.replace('.', '_')}_{PARAMS}"
    text = values.get(PARAMS, "{}")
    try:
        section = json.loads(text)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the parameters of '{stage.id}' are not JSON: {error}",
            where=f"{form} of the run",
            fix='write one JSON object, e.g. {"seed": 1}',
        ) from error
    if not isinstance(section, dict):
        raise UserError(
            f"the parameters of '{stage.id}' are not a JSON object but {text[:40]}",
            where=f"{form} of the run",
            fix='write one JSON object, e.g. {"seed": 1}',
        )
    known = {PARAMS, *stage.knobs, *(f"{port.name}_sha256" for port in stage.inputs)}
    for name in values:
        if name not in known:
            raise UserError(f"task '{stage.id}' has no parameter '{name}'", fix=did_you_mean(name, known))
    for name in stage.knobs:
        if name not in values:
            continue
        if name in section:
            raise UserError(
                f"parameter '{stage.section}.{name}' is given twice: {section[name]!r} and {values[name]!r}",
                where=f"{form} and '{name}' of the run",
                fix=f"take it out of {form}",
            )
        section[name] = _plain(name, values[name], stage.params.model_fields[name].annotation)

    def where(field: str) -> str:
        name = field.removeprefix(f"{stage.section}.")
        return f"'{name}' of the run's parameters" if name in stage.knobs else f"{form} of the run's parameters"

    return validate(stage.params, section, section=stage.section, where=where)


def knob_type(annotation: Any) -> type:
    """The plain type (str, int, float, bool or list) of a knob, whose parameter may be a literal or null as well.

    A mapping is a text, its canonical JSON: KFP would make floats of the integers inside an object.
    """
    if get_origin(annotation) in (Union, types.UnionType):
        (inner,) = [item for item in get_args(annotation) if item is not type(None)]
        return knob_type(inner)
    if get_origin(annotation) is Literal:
        return type(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return str
    if get_origin(annotation) is list:
        return list
    if annotation not in (str, int, float, bool):
        raise AssertionError(f"a knob cannot be of type {annotation}")
    return annotation  # type: ignore[no-any-return]


def knob_value(value: Any) -> Any:
    """A knob as it stands in a form: a mapping as its JSON, null as an empty text."""
    if isinstance(value, Mapping):
        return canonical_json(value)
    return "" if value is None else value


def _plain(name: str, value: Any, annotation: Any) -> Any:
    """A knob as Kubeflow gives it: numbers may come as floats, an empty text stands for null, a mapping is JSON.

    Raises:
        UserError: The JSON of a mapping cannot be read.
    """
    kind = knob_type(annotation)
    if value == "" and type(None) in get_args(annotation):
        return None
    plain = [item for item in (annotation, *get_args(annotation)) if get_origin(item) in (dict, list)]
    if kind is list and isinstance(value, list):
        return [_plain(name, item, get_args(plain[0])[0]) for item in value]
    if plain and kind is str and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as error:
            raise UserError(
                f"'{name}' is not JSON: {error}", where=f"'{name}' of the run", fix='write e.g. {"k": [16, 32]}'
            ) from error
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _check_input(stage: Stage, port: str, task: ExecutorInput) -> None:
    if port not in task.inputs:
        raise UserError(f"task '{stage.id}' got no input '{port}'", fix="connect it in the pipeline")
    folder = task.inputs[port]
    expected = task.parameters.get(f"{port}_sha256")
    if not expected:
        raise UserError(
            f"task '{stage.id}' got no checksum of its input '{port}'",
            where=f"{port}_sha256",
            fix=f"connect it to the output `{MANIFEST}` of the task that makes '{port}'",
        )
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(f"input '{port}' of '{stage.id}' is not there", where=str(folder), fix="run its producer again")
    if manifest_sha256(folder) != expected:
        raise DataError(
            f"input '{port}' of '{stage.id}' is not what its producer returned",
            where=str(folder),
            fix="run the task that makes it again, with caching off",
        )
