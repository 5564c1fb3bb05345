"""How many nodes and processes the trainings of a run take, which a cluster must know before it starts them."""

from __future__ import annotations

from plmsae.params import ParamsFile
from plmsae.stages.catalog import stages

NUM_NODES, NUM_PROCESSES = "num_nodes", "num_processes"


def ranks(file: ParamsFile) -> dict[str, tuple[int, int]]:
    """Section -> nodes, and processes of each, of every stage that may have several.

    Raises:
        UserError: A value of such a section is wrong.
    """
    found = {}
    for stage in stages().values():
        if {NUM_NODES, NUM_PROCESSES} <= set(stage.params.model_fields) and stage.section in file.data:
            params = file.load(stage.params, stage.section)
            found[stage.section] = (getattr(params, NUM_NODES), getattr(params, NUM_PROCESSES))
    return found
