"""All stages, in pipeline order. A new stage is one module here and one line in `_MODULES`."""

from __future__ import annotations

import importlib
from functools import cache

from plmsae.errors import UserError, did_you_mean
from plmsae.stages.spec import Stage

_MODULES = ("ingest", "validate", "extract_activations", "train_sae", "evaluate", "steer", "register", "promote")


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
    return list(dict.fromkeys(stage.name for stage in stages().values()))
