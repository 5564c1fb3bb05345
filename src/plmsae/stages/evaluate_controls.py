"""Stage `evaluate@controls`: the SAE's training once more on models without trained weights, and all baselines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.artifacts.manifest import manifest_sha256
from plmsae.errors import DataError, UserError
from plmsae.stages.spec import StageContext, StageResult
from plmsae.stages.variant_entries import ControlsParams

if TYPE_CHECKING:
    from plmsae.evaluation.inputs import Inputs
    from plmsae.stages.variants import Recipe

# What must be equal for numbers to stand in one table.
_SHARED = (
    "max_proteins",
    "fit_rows",
    "min_instances",
    "min_proteins",
    "thresholds",
    "num_resamples",
    "confidence",
    "seed",
)


def run(context: StageContext) -> StageResult:
    """Write `controls`, `concepts` (Parquet and CSV), `table.csv`, the figure, and each control's SAE below `members/`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store, cannot be trained
            again from its parameters, or its PLM is a control itself.
        DataError: A corrupted input, an empty split, or a result of `evaluate@baselines` that is of another SAE or of
            other parameters.
        TryAgainError: The bucket that holds the activations cannot be reached; the next run goes on.
    """
    import torch

    from plmsae.evaluation.controls import evaluate
    from plmsae.evaluation.inputs import Inputs
    from plmsae.stages.variants import Failure, Recipe, attempted, child, keep

    params: ControlsParams = context.params
    baselines = _baselines(context)
    inputs = Inputs.load(
        context.inputs["sequences"], context.inputs["activations"], context.inputs["sae"], root=context.root
    )
    recipe = Recipe.of(context)
    training = recipe.training_of(inputs.sae.config.layer, inputs.sae.config.hook)
    saes: dict[str, Path | Failure] = {}
    for control in params.controls:
        plm = _control(inputs, f"{control}={params.control_seed}")
        name = f"{control}_weights"
        saes[name] = attempted(context, name, _train, recipe, inputs, plm, name)
    torch.set_num_threads(params.threads)
    controls = {
        name: Inputs.load(inputs.sequences, context.checkpoints / _activations(name), made, root=context.root)
        for name, made in saes.items()
        if isinstance(made, Path)
    }
    outcome = evaluate(
        inputs,
        context.output,
        controls=controls,
        failed={name: made.reason for name, made in saes.items() if isinstance(made, Failure)},
        baselines=baselines,
        **params.model_dump(exclude={"controls", "control_seed"}),
    )
    children = {}
    for name, made in saes.items():
        if isinstance(made, Path):
            keep(made, context.output, name)
        scores = {key: value for key, value in outcome.metrics.items() if key.endswith(f"_{name}")}
        children[name] = child(training, made, name, scores)
    return StageResult(outcome.metrics, outcome.summary, children)


def _train(context: StageContext, recipe: Recipe, inputs: Inputs, plm: tuple[str, str | None], name: str) -> Path:
    """The SAE of a control model."""
    from plmsae.stages.variants import extracted, trained

    layer, hook = inputs.sae.config.layer, inputs.sae.config.hook
    activations = extracted(context, recipe.extraction_of(*plm, [layer], hook), _activations(name))
    return trained(context, recipe.training_of(layer, hook), activations, name)


def _activations(name: str) -> str:
    return f"{name}.activations"


def _control(inputs: Inputs, control: str) -> tuple[str, str | None]:
    """Name and revision of a control of the SAE's model.

    A commit of a hub holds for the control too. The revision of other models is the checksum of what is read, which
    is not the same for a control; that the weights are the SAE's was checked when its own model was loaded.
    """
    name, revision = inputs.plm.name, inputs.plm.revision
    if name.rpartition("?")[0]:
        raise UserError(
            f"the SAE's PLM, '{name}', is a control already", fix="pass an SAE of the trained model as input sae"
        )
    return f"{name}?{control}", None if revision.startswith("sha256:") else revision


def _baselines(context: StageContext) -> Mapping[str, float]:
    """Metrics of `evaluate@baselines`, if they are of this SAE and of these parameters.

    Raises:
        DataError: They are not.
    """
    params: ControlsParams = context.params
    folder, manifest = context.inputs["baselines"], context.manifests["baselines"]
    fix = "run evaluate@baselines with the same parameters and inputs (plmsae run evaluate@baselines), then this again"
    if manifest.stage != "evaluate@baselines":
        raise DataError(f"the input baselines is an output of '{manifest.stage}'", where=str(folder), fix=fix)
    for port in ("sequences", "activations", "sae"):
        if manifest.inputs.get(port) != manifest_sha256(context.inputs[port]):
            raise DataError(f"the baselines were measured beside another input '{port}'", where=str(folder), fix=fix)
    own = params.model_dump(mode="json")
    for name in _SHARED:
        if manifest.params.get(name) != own[name]:
            raise DataError(
                f"the baselines were measured with {name} = {manifest.params.get(name)}, and here it is {own[name]}",
                where=f"{folder}, evaluate.controls.{name}",
                fix=f"give evaluate.baselines.{name} and evaluate.controls.{name} one value; {fix}",
            )
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics
