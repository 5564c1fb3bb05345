"""Parameters of a pipeline run, from `params.yaml`: typed knobs, and one JSON text per section for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plmsae.errors import UserError
from plmsae.params import ParamsFile, canonical_json
from plmsae.stages.catalog import load_params, section_values, sections, stages, stages_of
from plmsae.stages.components import function_name
from plmsae.stages.executor_input import PARAMS, knob_value
from plmsae.stages.spec import Stage


def pipeline_arguments(file: ParamsFile, stage_ids: Sequence[str] | None = None) -> dict[str, Any]:
    """Arguments of a pipeline that runs these stages with the parameters of a file.

    A knob that several stages have (`seed`) is one argument, so their sections must agree on it.

    Args:
        file: The parameters.
        stage_ids: Stages of the pipeline, by default those of `train`.

    Returns:
        Knob -> value (a null text as an empty one, which the stage reads as null), and `<stage>_params` -> canonical
        JSON of what is left of its section.

    Raises:
        UserError: An unknown section or parameter, a wrong value, or sections that disagree on a knob.
    """
    file.check_sections(sections())
    arguments: dict[str, Any] = {}
    owners: dict[str, Stage] = {}
    chosen = (stages_of("train") if stage_ids is None else {name: stages()[name] for name in stage_ids}).values()
    replaced = {name for stage in chosen for name in stage.replaces}
    laid_out = {name for stage in chosen for name in stage.wired if name in stage.inherits}
    for stage in chosen:
        laid = stage.id in laid_out
        values = section_values(file, stage) if laid else load_params(file, stage).model_dump(mode="json")
        if stage.repeats and "source" in stage.knobs:
            values["source"] = values["source"] or values["stages"]["ingest"]["source"]
        for name in stage.knobs:
            value = knob_value(values.pop(name))
            if name in stage.wired or name in replaced:
                continue
            if name in owners and arguments.get(name) != value:
                other = owners[name]
                raise UserError(
                    f"a pipeline has one '{name}', but '{other.section}.{name}' is {arguments.get(name)!r} and "
                    f"'{stage.section}.{name}' is {value!r}",
                    where=file.where(f"{stage.section}.{name}"),
                    fix="give both the same value",
                )
            owners[name] = stage
            arguments[name] = value
        if values or not stage.wired:
            arguments[f"{function_name(stage)}_{PARAMS}"] = canonical_json(values)
    return arguments
