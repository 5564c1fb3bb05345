"""Tasks that several pipelines have, wired once: from proteins to activations, and what is known of an SAE.

Ports are the arguments of a component that reads them: `name` for the artifact and `name_sha256` for the checksum that
names its contents.
"""

from typing import Any

from kfp import dsl

from components.evaluate.component import (
    evaluate_absorption,
    evaluate_amortisation,
    evaluate_baselines,
    evaluate_clustering,
    evaluate_concepts,
    evaluate_fidelity,
    evaluate_patterns,
    evaluate_probes,
)
from components.extract_activations.component import extract_activations
from components.ingest.component import ingest
from components.pull.component import pull
from components.resolve.component import resolve
from components.validate.component import validate
from pipelines.settings import configure

Ports = dict[str, Any]
_EVALUATIONS = {
    "fidelity": evaluate_fidelity,
    "concepts": evaluate_concepts,
    "baselines": evaluate_baselines,
    "amortisation": evaluate_amortisation,
    "probes": evaluate_probes,
    "patterns": evaluate_patterns,
    "clustering": evaluate_clustering,
    "absorption": evaluate_absorption,
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


def registered(model: str, resolve_params: str) -> tuple[dsl.PipelineTask, Ports]:
    """Take an SAE out of the registry.

    Args:
        model: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; empty takes the only champion.
        resolve_params: Parameters of `resolve`.

    Returns:
        The task that found its version, and the port `sae`.
    """
    resolved = configure(resolve(model=model, params=resolve_params), "resolve")
    pulled = pull(uri=resolved.outputs["uri"], package_sha256=resolved.outputs["package_sha256"])
    return resolved, port("sae", configure(pulled, "pull"))


def of_the_sae(resolved: dsl.PipelineTask) -> dict[str, Any]:
    """Arguments of `extract_activations` that give the activations of a registered SAE.

    Args:
        resolved: The task that found its version.
    """
    knobs = {name: resolved.outputs[name] for name in ("plm", "layer", "store", "seed")}
    return {**knobs, "params": resolved.outputs["extract_activations_params"]}


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
