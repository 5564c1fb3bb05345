"""All stages, in pipeline order. A new stage is one module here and one line in `_MODULES`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from plmsae.errors import UserError, did_you_mean
from plmsae.params import Params, ParamsFile, validate
from plmsae.stages.reevaluation_params import REEVALUATE
from plmsae.stages.spec import Pipeline, Stage

_MODULES = (
    "ingest",
    "validate",
    "extract_activations",
    "train_sae",
    "sweep",
    "resolve",
    "pull",
    "evaluate",
    "steer",
    "report",
    "register",
    "promote",
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
    data = file.section(stage.section)
    for name in stage.inherits:
        own = data.get(name) or {}
        if isinstance(own, dict):
            values = {**file.section(name), **own}
            where = _place(file, stage.section, name, own)
            filled = validate(stages()[name].params, values, section=name, where=where).model_dump(mode="json")
            # What the stage finds out by itself is handed on only where somebody wrote it there, to be compared.
            kept = {key for key in filled if key in own or f"{name}.{key}" not in stage.decides}
            data = {**data, name: {key: value for key, value in filled.items() if key in kept}}
    return validate(stage.params, data, section=stage.section, where=file.where)


def _place(file: ParamsFile, section: str, name: str, own: dict[str, Any]) -> Callable[[str], str]:
    """Where a field of an inherited section stands: with the stage, or with the section's owner."""

    def where(field: str) -> str:
        key = field.removeprefix(f"{name}.").partition(".")[0]
        return file.where(f"{section}.{field}" if key in own else field)

    return where


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
    """Top-level sections of `params.yaml`, in pipeline order, and that of what runs beside the pipelines."""
    return [*dict.fromkeys(stage.name for stage in stages().values()), REEVALUATE]
