"""How many nodes and processes the trainings of a run take, which a cluster must know before it starts them."""

from __future__ import annotations

from plmsae.params import ParamsFile
from plmsae.stages.catalog import section_values, stages

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
