"""Renders `components/`: for every stage one thin Kubeflow component and its README, as text. No kfp in here."""

from __future__ import annotations

import json
import re
import textwrap

from plmsae.stages.catalog import stages
from plmsae.stages.executor_input import MANIFEST, METRICS, OUTPUT, PARAMS, REPORT, SUMMARY, knob_type, knob_value
from plmsae.stages.spec import Stage

# The host is reserved for documentation (RFC 2606). Names no image that exists: a pipeline is compiled again with the
# user's own (`plmsae compile --image`).
EXAMPLE_HOST = "registry.example.org"
EXAMPLE_IMAGE = f"{EXAMPLE_HOST}/plmsae@sha256:" + 64 * "0"
# Artifact type that travels -> the type that the Kubeflow UI knows.
ARTIFACTS = {
    "sequences": "Dataset",
    "report": "Artifact",
    "activations": "Dataset",
    "sae": "Model",
    "result": "Artifact",
    "registration": "Artifact",
    "promotion": "Artifact",
}


def function_name(stage: Stage) -> str:
    """Name of the component's function, e.g. `train_sae` or `evaluate_fidelity`."""
    return stage.id.replace("@", "_")


def task_name(stage: Stage) -> str:
    """Name of the task in a compiled pipeline, e.g. `train-sae`."""
    return function_name(stage).replace("_", "-")


def knob_defaults(stage: Stage) -> dict[str, str | int | float | bool]:
    """Knob -> the default of its parameter; a text that may be null is empty then.

    A nullable number cannot be a knob: KFP's back end does not hand an absent value down into a sub-graph.
    """
    defaults = stage.params().model_dump(mode="json")
    found = {}
    for name in stage.knobs:
        value = defaults[name]
        if value is None and knob_type(stage.params.model_fields[name].annotation) is not str:
            raise AssertionError(f"{stage.id}: '{name}' is a number that may be null")
        found[name] = knob_value(value)
    return found


def component_targets(generated: str) -> dict[str, str]:
    """Relative path -> text of every component module and README.

    Args:
        generated: The line that says that a file is generated, and by what.
    """
    folders: dict[str, list[Stage]] = {}
    for stage in stages().values():
        folders.setdefault(stage.name, []).append(stage)
    targets = {}
    for name, members in folders.items():
        targets[f"components/{name}/component.py"] = _module(name, members, generated)
        targets[f"components/{name}/README.md"] = _readme(name, members, generated)
    return targets


def _module(name: str, members: list[Stage], generated: str) -> str:
    images = sorted({_image(stage) for stage in members})
    noun = "component" if len(members) == 1 else "components"
    lines = [
        f'"""Kubeflow {noun} of the stage `{name}`.',
        "",
        generated,
        '"""',
        "",
        "from kfp import dsl",
        "",
        f"from components.image import {', '.join(images)}",
        "",
    ]
    for stage in members:
        lines += ["", *_function(stage), ""]
    return "\n".join(lines)


def _image(stage: Stage) -> str:
    return "GPU_IMAGE" if stage.resources.gpu else "IMAGE"


def _ports(stage: Stage) -> list[tuple[str, str, str]]:
    """(name, annotation, meaning) of every argument, those without a default first."""
    found: list[tuple[str, str, str]] = []
    optional: list[tuple[str, str, str]] = []
    for port in stage.inputs:
        artifact, checksum = ("", "") if not port.optional else (" = None", ' = ""')
        (optional if port.optional else found).extend(
            [
                (port.name, f"dsl.Input[dsl.{ARTIFACTS[port.kind]}]{artifact}", f"Output of {port.source}."),
                (f"{port.name}_sha256", f"str{checksum}", f"Its checksum: the output `{MANIFEST}` of {port.source}."),
            ]
        )
    found += [
        (OUTPUT, f"dsl.Output[dsl.{ARTIFACTS[stage.kind]}]", f"Folder of kind '{stage.kind}' with its manifest."),
        (METRICS, "dsl.Output[dsl.Metrics]", "Numbers for the UI."),
        (SUMMARY, "dsl.Output[dsl.Markdown]", "One paragraph for people."),
    ]
    if stage.report:
        found.append((REPORT, "dsl.Output[dsl.HTML]", "Report for the UI, a self-contained page."))
    found.append((MANIFEST, "dsl.OutputPath(str)", "Checksum that names the output; feeds the cache keys downstream."))
    found += [(value.name, f"dsl.OutputPath({value.kind.__name__})", value.meaning) for value in stage.values]
    return found + optional


def _knobs(stage: Stage) -> list[tuple[str, str, str]]:
    """(name, annotation with default, meaning) of every knob."""
    found = []
    for name, default in knob_defaults(stage).items():
        field = stage.params.model_fields[name]
        kind = knob_type(field.annotation).__name__
        found.append((name, f"{kind} = {_literal(default)}", " ".join((field.description or "").split())))
    return found


def _literal(value: str | int | float | bool) -> str:
    if not isinstance(value, str) or '"' in value:
        return repr(value)  # as the formatter would write it
    return json.dumps(value)


def _function(stage: Stage) -> list[str]:
    section = f'The other parameters of section `{stage.section}`, one JSON object; "{{}}" takes the defaults.'
    arguments = [f"{name}: {annotation}," for name, annotation, _ in _ports(stage)]
    arguments += [f'{PARAMS}: str = "{{}}",', *(f"{name}: {annotation}," for name, annotation, _ in _knobs(stage))]
    meanings = [*_ports(stage), (PARAMS, "", section), *_knobs(stage)]
    summary = f"{stage.summary[0].upper()}{stage.summary[1:].rstrip('.')}."
    return [
        "@dsl.container_component",
        f"def {function_name(stage)}(",
        *(f"    {argument}" for argument in arguments),
        ") -> dsl.ContainerSpec:",
        f'    """{summary}',
        "",
        "    Args:",
        *(line for name, _, meaning in meanings for line in _wrapped(f"{name}: {meaning}")),
        '    """',
        "    return dsl.ContainerSpec(",
        f"        image={_image(stage)},",
        f'        command=["plmsae", "run", "{stage.id}"],',
        '        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],',
        "    )",
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=8 * " ", subsequent_indent=12 * " ", break_long_words=False)


def _readme(name: str, members: list[Stage], generated: str) -> str:
    lines = [f"# {name}", "", f"<!-- {generated} -->", ""]
    for stage in members:
        need = stage.resources
        lines += [
            f"## `{function_name(stage)}`",
            "",
            f"{stage.summary[0].upper()}{stage.summary[1:].rstrip('.')}.",
            "",
            f"Runs `plmsae run {stage.id}` in the {'GPU' if need.gpu else 'CPU'} image. Asks for {need.cpu} CPU, "
            f"{need.memory_gib} GiB and {need.gpu} GPU, ends after {need.timeout_hours} h at the latest, retried as "
            f"`{need.retry}`. " + _caching(stage),
            "",
            "| port | type | meaning |",
            "|---|---|---|",
        ]
        for port, annotation, meaning in _ports(stage):
            lines.append(f"| `{port}` | {_port_type(annotation)} | {meaning} |")
        lines += ["", "| parameter | type, default | meaning |", "|---|---|---|"]
        lines.append(f"| `{PARAMS}` | `str = '{{}}'` | the rest of section `{stage.section}` as one JSON object |")
        for knob, annotation, meaning in _knobs(stage):
            lines.append(f"| `{knob}` | `{annotation}` | {meaning} |")
        page = "docs/reference/stages.md"
        lines += ["", f"All parameters: [{page}](../../{page}#{_anchor(stage)}).", ""]
    return "\n".join(lines)


def _caching(stage: Stage) -> str:
    if stage.side_effects:
        return "Acts on the registry, so it is never cached."
    if stage.looks_up:
        return "Asks the registry what a name points at, so it is never cached."
    return "Cached by contents."


def _port_type(annotation: str) -> str:
    """`dsl.Input[dsl.Model]` as `input Model`, `dsl.OutputPath(str)` as `output str`, with a default as optional."""
    kind, default, _ = annotation.partition(" = ")
    kind = re.sub(r"dsl\.(Input|Output)(?:Path)?[\[(](?:dsl\.)?(\w+)[\])]", lambda m: f"{m[1].lower()} {m[2]}", kind)
    return f"optional {kind}" if default else kind


def _anchor(stage: Stage) -> str:
    return stage.id.replace("@", "")
