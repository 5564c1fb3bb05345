"""A compiled pipeline: what it is called, which parameters it takes, which images it runs.

Kubeflow checks the arguments of a run only after it has taken the pipeline; here they are checked before anything is
sent, against the very package that will be sent.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from plmsae.errors import UserError

# What the parameter types of KFP are called in messages, and the Python types that they take.
_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "STRING": ("a text", (str,)),
    "NUMBER_INTEGER": ("an integer", (int,)),
    "NUMBER_DOUBLE": ("a number", (int, float)),
    "BOOLEAN": ("true or false", (bool,)),
    "LIST": ("a list", (list,)),
    "STRUCT": ("a mapping", (dict,)),
}
# Kubeflow keeps every number as a double.
_EXACT = 2**53


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline: its KFP type (`NUMBER_INTEGER`), and whether a run must give it."""

    type: str
    required: bool


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        name: Name of the pipeline, as Kubeflow lists it.
        text: The YAML, byte for byte what is uploaded.
        parameters: Name -> what the pipeline declares.
        images: Images of its tasks, sorted, each once.
        tasks: Names of the tasks that run something, those of nested graphs included.
    """

    name: str
    text: bytes
    parameters: Mapping[str, Parameter]
    images: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def version(self) -> str:
        """Name of this version of the pipeline: equal packages, and only they, have equal names."""
        return f"{self.name}-{hashlib.sha256(self.text).hexdigest()[:12]}"

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Compare the arguments of a run to the parameters that the pipeline declares.

        Raises:
            UserError: Names every argument that is missing, unknown or of the wrong type.
        """
        problems = [
            f"parameter '{name}' is missing"
            for name, parameter in self.parameters.items()
            if parameter.required and arguments.get(name) is None
        ]
        for name, value in arguments.items():
            declared = self.parameters.get(name)
            if declared is None:
                problems.append(f"there is no parameter '{name}'")
                continue
            expected, types = _TYPES.get(declared.type, (declared.type, ()))
            given = f"{_shown(value)} ({type(value).__name__})"
            if not isinstance(value, types) or (isinstance(value, bool) and declared.type != "BOOLEAN"):
                problems.append(f"parameter '{name}' takes {expected}, given {given}")
            elif isinstance(value, int) and abs(value) > _EXACT:
                problems.append(f"parameter '{name}' = {value} is beyond 2^53, where Kubeflow rounds")
            elif isinstance(value, float) and not math.isfinite(value):
                problems.append(f"parameter '{name}' takes {expected}, given {given}")
        if problems:
            raise UserError(
                "; ".join(problems),
                where=f"pipeline '{self.name}'",
                fix="give it with --set SECTION.KEY=VALUE or in params.yaml; compile the pipeline again if it is older "
                "than this plmsae",
            )


def read_package(path: Path) -> Package:
    """Read a compiled pipeline from a file.

    Raises:
        UserError: The file is missing or is not a compiled pipeline.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"package '{path}' cannot be read: {error.strerror}", where="--package", fix="make it with: plmsae compile"
        ) from error
    return parse_package(text, where=str(path))


def parse_package(text: bytes, *, where: str) -> Package:
    """Parse a compiled pipeline and validate it as KFP does.

    Args:
        text: The YAML: the pipeline specification and, as a second document, the platform's.
        where: Where it is from, for messages.

    Raises:
        UserError: It is not a compiled pipeline.
    """
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
        if not documents or len(documents) > 2 or not all(isinstance(document, dict) for document in documents):
            raise ValueError("not one or two YAML mappings")
        if "pipelineInfo" not in documents[0]:
            raise ValueError("no pipelineInfo in it")
        spec = json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for document in documents[1:]:
            json_format.ParseDict(document, pipeline_spec_pb2.PlatformSpec())
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", spec.pipeline_info.name):
            raise ValueError(f"'{spec.pipeline_info.name}' is not a name that Kubeflow takes")
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, json_format.ParseError) as error:
        raise UserError(
            f"not a compiled Kubeflow pipeline: {' '.join(str(error).split())[:300]}",
            where=where,
            fix="make one with: plmsae compile PIPELINE --output FILE",
        ) from error
    types = pipeline_spec_pb2.ParameterType.ParameterTypeEnum
    dags = [spec.root.dag, *(component.dag for component in spec.components.values())]
    executors = json_format.MessageToDict(spec.deployment_spec).get("executors", {})
    images = {executor["container"]["image"] for executor in executors.values() if "container" in executor}
    return Package(
        name=spec.pipeline_info.name,
        text=text,
        parameters={
            name: Parameter(
                type=types.Name(parameter.parameter_type),
                required=not parameter.is_optional and not parameter.HasField("default_value"),
            )
            for name, parameter in sorted(spec.root.input_definitions.parameters.items())
        },
        # An image that is itself a parameter is known only to the run.
        images=tuple(sorted(image for image in images if "{{" not in image)),
        tasks=tuple(
            sorted(
                name
                for dag in dags
                for name, task in dag.tasks.items()
                if spec.components[task.component_ref.name].executor_label
            )
        ),
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
