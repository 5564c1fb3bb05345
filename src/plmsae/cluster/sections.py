"""Parameters of a pipeline run, from `params.yaml`: typed knobs, and one JSON text per section for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plmsae.errors import UserError
from plmsae.params import ParamsFile, canonical_json
from plmsae.stages.catalog import load_params, sections, stages, stages_of
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
    for stage in (stages_of("train") if stage_ids is None else {name: stages()[name] for name in stage_ids}).values():
        values = load_params(file, stage).model_dump(mode="json")
        for name in stage.knobs:
            value = knob_value(values[name])
            del values[name]
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
        arguments[f"{function_name(stage)}_{PARAMS}"] = canonical_json(values)
    return arguments
