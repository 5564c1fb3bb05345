"""All stages, in pipeline order. A new stage is one module here and one line in `_MODULES`."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from plmsae.errors import UserError, did_you_mean
from plmsae.params import Params, ParamsFile, validate
from plmsae.stages.spec import Pipeline, Stage

STAGES = "stages"  # the parameter that holds the sections of the stages that one repeats

_MODULES = (
    "ingest",
    "validate",
    "extract_activations",
    "train_sae",
    "sweep",
    "sweep_pairs",
    "sweep_report",
    "resolve",
    "pull",
    "evaluate",
    "steer",
    "report",
    "register",
    "promote",
    "changes",
    "reevaluate",
    "verdict",
)


@cache
def stages() -> dict[str, Stage]:
    """Stage id -> declaration, in pipeline order.

    Each module of this folder named in `_MODULES` declares `STAGE`, or `STAGES` if it is a suite.
    """
    found: dict[str, Stage] = {}
    for name in _MODULES:
        module = importlib.import_module(f"plmsae.stages.{name}")
        for stage in getattr(module, "STAGES", None) or (module.STAGE,):
            if stage.name != name or stage.id in found:
                raise AssertionError(f"plmsae.stages.{name} declares '{stage.id}'")
            found[stage.id] = stage
    return found


def stages_of(pipeline: Pipeline) -> dict[str, Stage]:
    """Stage id -> declaration, of the stages that belong to a pipeline by themselves."""
    return {stage_id: stage for stage_id, stage in stages().items() if stage.pipeline == pipeline}


def load_params(file: ParamsFile, stage: Stage) -> Params:
    """The parameters of a stage, complete: what it inherits is filled in from the other stage's section.

    Raises:
        UserError: A missing section, an unknown parameter or a wrong value.
    """
    return validate(stage.params, _with_others(file, stage), section=stage.section, where=file.where)


def section_values(file: ParamsFile, stage: Stage) -> dict[str, Any]:
    """Every value of a stage's section, complete and each valid by itself; `load_params` judges them together as well.

    For a stage whose runs another one lays out: together they may be right only once they are laid out.

    Raises:
        UserError: A missing section, an unknown parameter or a wrong value.
    """
    data = _with_others(file, stage)
    alone = {name: value for name, value in data.items() if name not in stage.inherits}
    found = validate(stage.params, alone, section=stage.section, where=file.where).model_dump(mode="json")
    return {**found, **{name: data[name] for name in stage.inherits}}


def _with_others(file: ParamsFile, stage: Stage) -> dict[str, Any]:
    """What stands in its section, and what it takes from the sections of other stages."""
    data = file.section(stage.section)
    for name in stage.inherits:
        data = {**data, name: _filled(file, stage, name, data.get(name), f"{stage.section}.{name}")}
    own = data.get(STAGES) or {}
    if stage.repeats and isinstance(own, dict):
        found = {
            name: _filled(file, stage, name, own.get(name), f"{stage.section}.{STAGES}.{name}")
            for name in stage.repeats
        }
        data = {**data, STAGES: {**own, **found}}
    return data


def _filled(file: ParamsFile, stage: Stage, name: str, own: Any, at: str) -> Any:
    """The section of another stage, complete, with what stands in `own` in place of its values."""
    if not isinstance(own := own or {}, dict):
        return own
    other = stages()[name]
    section = other.section

    def where(field: str) -> str:
        key = field.removeprefix(f"{section}.")
        return file.where(f"{at}.{key}" if key.partition(".")[0] in own else field)

    values = {**file.section(section), **own}
    inner = {name: _filled(file, other, name, values.pop(name, None), f"{at}.{name}") for name in other.inherits}
    filled = {**validate(other.params, values, section=section, where=where).model_dump(mode="json"), **inner}
    # What the stage finds out by itself is handed on only where somebody wrote it there, to be compared.
    kept = {key for key in filled if key in own or f"{name}.{key}" not in stage.decides}
    return {key: value for key, value in filled.items() if key in kept}


def sections_read(stage: Stage) -> list[str]:
    """Its own section, and those of other stages that it reads."""
    return [stage.section, *(stages()[name].section for name in (*stage.inherits, *stage.repeats))]


def raw_addresses(stage: Stage) -> dict[str, str]:
    """Dotted parameter that may name a raw file, beside its `source_files` -> where users write it."""
    found = {name: f"{stage.section}.{name}" for name in stage.optional_files}
    for other in (stages()[name] for name in stage.repeats):
        found |= {f"{STAGES}.{other.id}.{name}": f"{other.section}.{name}" for name in other.optional_files}
    return found


def stage(stage_id: str) -> Stage:
    """One stage by its id.

    Raises:
        UserError: There is no such stage.
    """
    known = stages()
    if stage_id not in known:
        raise UserError(f"unknown stage '{stage_id}'", fix=did_you_mean(stage_id, known))
    return known[stage_id]


def sections() -> list[str]:
    """Top-level sections of `params.yaml`, in pipeline order."""
    return list(dict.fromkeys(stage.section.partition(".")[0] for stage in stages().values()))
