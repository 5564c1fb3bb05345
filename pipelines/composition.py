"""Tasks that several pipelines have, wired once: from proteins to activations, and what is known of an SAE.

Ports are the arguments of a component that reads them: `name` for the artifact and `name_sha256` for the checksum that
names its contents.
"""

from typing import Any

from kfp import dsl

from components.evaluate.component import (
    evaluate_amortisation,
    evaluate_baselines,
    evaluate_concepts,
    evaluate_fidelity,
)
from components.extract_activations.component import extract_activations
from components.ingest.component import ingest
from components.validate.component import validate
from pipelines.settings import configure

Ports = dict[str, Any]
_EVALUATIONS = {
    "fidelity": evaluate_fidelity,
    "concepts": evaluate_concepts,
    "baselines": evaluate_baselines,
    "amortisation": evaluate_amortisation,
}


def port(name: str, task: dsl.PipelineTask) -> Ports:
    """The output of a task as a port.

    Args:
        name: Name of the port.
        task: The task.
    """
    return {name: task.outputs["output"], f"{name}_sha256": task.outputs["manifest_sha256"]}


def proteins(**arguments: Any) -> Ports:
    """Read the proteins.

    Args:
        arguments: Those of `ingest`.

    Returns:
        The port `sequences`.
    """
    return port("sequences", configure(ingest(**arguments), "ingest"))


def activations(sequences: Ports, validate_params: str, **arguments: Any) -> Ports:
    """Validate proteins and embed them.

    Args:
        sequences: The port `sequences`.
        validate_params: Parameters of `validate`.
        arguments: Those of `extract_activations` beside its ports.

    Returns:
        The port `activations`.
    """
    validated = configure(validate(**sequences, params=validate_params), "validate")
    extracted = extract_activations(**sequences, **port("validation", validated), **arguments)
    return port("activations", configure(extracted, "extract_activations"))


def evaluations(sae: Ports, **params: str) -> Ports:
    """Evaluate an SAE, all evaluations side by side.

    Args:
        sae: The ports `sequences`, `activations` and `sae`.
        params: Name of an evaluation -> its parameters.

    Returns:
        A port for each, of the same name.
    """
    found: Ports = {}
    for name, text in params.items():
        found |= port(name, configure(_EVALUATIONS[name](**sae, params=text), f"evaluate@{name}"))
    return found
