"""Stage `sweep_pairs`: the sweeps of a Kubeflow pipeline, one for each pair of a layer and an architecture.

Hands on values alone: Kubeflow's loop goes over the pairs, and the extraction takes all layers in one pass.
"""

from __future__ import annotations

import json

from plmsae.params import canonical_json
from plmsae.stages.extract_activations import STAGE as EXTRACTION
from plmsae.stages.spec import Resources, Stage, StageContext, StageResult, Value
from plmsae.stages.sweep import STAGE as SWEEP
from plmsae.stages.sweep_pairs_params import SweepPairsParams

STAGE = Stage(
    id="sweep_pairs",
    summary="Lay out a sweep for every pair of a layer and an architecture",
    params=SweepPairsParams,
    inherits=("extract_activations", "sweep"),
    pipeline="pairs",
    kind="report",
    run="plmsae.stages.sweep_pairs:run",
    code=(
        "activations",
        "artifacts",
        "evaluation",
        "figures.py",
        "plms",
        "proteins",
        "saes",
        "training",
        "validation",
    ),
    knobs=("layers", "architectures", "grid", "extract_activations", "sweep"),
    wired=("grid", "extract_activations", "sweep"),
    replaces=("layer",),
    values=(
        Value("layer", int, "The first layer; for `extract_activations`, like the next one."),
        Value("extract_activations_params", str, "The other parameters, with the further layers, one JSON object."),
        Value("pairs", list, "Per pair its layer, its architecture, and `grid` and `params` for `sweep`."),
    ),
    resources=Resources(cpu=1, memory_gib=2),
)


def run(context: StageContext) -> StageResult:
    """Write `pairs.json`.

    Raises:
        UserError: See `SweepPairsParams.pairs`.
    """
    from plmsae.artifacts.atomic import write_text

    params: SweepPairsParams = context.params
    pairs = params.pairs()
    found = []
    for pair in pairs:
        sweep = pair.sweep.model_dump(mode="json")
        grid = canonical_json(sweep.pop("grid"))
        rest = canonical_json({name: value for name, value in sweep.items() if name not in SWEEP.knobs})
        found.append(
            {"layer": pair.layer, "architecture": " or ".join(pair.architectures), "grid": grid, "params": rest}
        )
    extraction = {**params.extract_activations, "also": params.also()}
    write_text(context.output / "pairs.json", json.dumps(found, indent=1, sort_keys=True) + "\n")
    members = [len(pair.sweep.members()) for pair in pairs]
    return StageResult(
        metrics={"num_pairs": len(pairs), "num_members": sum(members)},
        summary=f"{len(pairs)} sweeps with {sum(members)} SAEs: "
        + ", ".join(f"layer {one['layer']} {one['architecture']}" for one in found)
        + ".",
        values={
            "layer": params.layers[0],
            "extract_activations_params": canonical_json(
                {name: value for name, value in extraction.items() if name not in EXTRACTION.knobs}
            ),
            "pairs": found,
        },
    )
