"""What a cluster must know of a run before it starts the tasks: nodes and processes of trainings, and who has a GPU."""

from __future__ import annotations

from collections.abc import Collection

from plmsae.params import ParamsFile
from plmsae.stages.catalog import section_values, stages
from plmsae.stages.spec import Stage

TRAINING = "train_sae"


def ranks(file: ParamsFile) -> dict[str, tuple[int, int]]:
    """Section -> nodes, and processes of each, of every stage that trains.

    Raises:
        UserError: A value of such a section is wrong.
    """
    found = {}
    for stage in stages().values():
        inherits = TRAINING in stage.inherits
        if (inherits or stage.section == TRAINING) and stage.section in file.data:
            values = section_values(file, stage)
            training = values[TRAINING] if inherits else values
            found[stage.section] = (training["num_nodes"], training["num_processes"])
    return found


def on_gpu(file: ParamsFile) -> list[str]:
    """Sections of the stages that take a GPU because their parameter `device` is `cuda`, beside those that always do.

    Raises:
        UserError: A value of such a section is wrong.
    """
    return [
        stage.section
        for stage in stages().values()
        if "device" in stage.params.model_fields
        and not stage.resources.gpu
        and stage.section in file.data
        and section_values(file, stage)["device"] == "cuda"
    ]


def num_gpus(stage: Stage, asked: Collection[str]) -> int:
    """GPUs of one process of a stage.

    Args:
        stage: The stage.
        asked: Sections of the stages that take one by their parameter, from `on_gpu`.
    """
    return stage.resources.gpu or int(stage.section in asked)
