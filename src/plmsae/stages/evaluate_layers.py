"""Stage `evaluate@layers`: the SAE's training once more on other layers of its model, and all layers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from plmsae.errors import DataError, UserError
from plmsae.stages.spec import StageContext, StageResult
from plmsae.stages.variant_entries import LayersParams

if TYPE_CHECKING:
    from plmsae.evaluation.inputs import Inputs
    from plmsae.plms.base import ProteinLM
    from plmsae.stages.variants import Failure, Recipe


def run(context: StageContext) -> StageResult:
    """Write `layers`, `matches`, `latents`, `concepts` (Parquet and CSV), `table.csv`, the figure, and by layer the
    files of `evaluate@fidelity` below `fidelity/` and the SAE below `members/`.

    Raises:
        UserError: The SAE belongs to another PLM, revision, layer or hook than the activation store, or cannot be
            trained again from its parameters; a layer does not exist.
        DataError: A corrupted input, an empty split, or no layer on which an SAE could be trained.
        TryAgainError: The bucket that holds the activations cannot be reached; the next run goes on.
    """
    import torch

    from plmsae.evaluation.inputs import Inputs
    from plmsae.evaluation.layers import evaluate
    from plmsae.stages.evaluate import FidelityParams
    from plmsae.stages.variants import Failure, Recipe, child, keep

    params: LayersParams = context.params
    given = Inputs.load(
        context.inputs["sequences"], context.inputs["activations"], context.inputs["sae"], root=context.root
    )
    own, hook = given.sae.config.layer, given.sae.config.hook
    layers = _layers(given.plm, hook) if params.layers is None else params.layers
    for layer in layers:
        given.plm.check_hook(layer, hook)
    recipe = Recipe.of(context)
    saes, activations = _train(context, recipe, given, layers)
    failed = {layer: made.reason for layer, made in saes.items() if isinstance(made, Failure)}
    torch.set_num_threads(params.threads)
    inputs: dict[int, Inputs] = {}
    for layer in layers:
        made = saes.get(layer)
        if layer == own:
            inputs[layer] = given
        elif isinstance(made, Path):
            inputs[layer] = Inputs.load(given.sequences, activations[layer], made, root=context.root, plm=given.plm)
    for layer in [layer for layer, each in inputs.items() if not bool((each.sae.latent_max > 0).any())]:
        failed[layer] = "none of its latents fires on the training residues"
        del inputs[layer]
    if not inputs:
        raise DataError(
            "no layer has an SAE",
            where=f"layer {layers[0]}: {failed[layers[0]]}",
            fix="use an SAE whose parameters train",
        )
    shared = ("num_resamples", "confidence", "max_tokens", "threads", "seed", "masked_share")
    fidelity = FidelityParams(max_proteins=params.fidelity_proteins, **{name: getattr(params, name) for name in shared})
    outcome = evaluate(
        inputs,
        context.output,
        reference=own if own in inputs else min(inputs),
        failed=failed,
        fidelity=fidelity.model_dump(),
        **params.model_dump(exclude={"layers", "fidelity_proteins", "masked_share"}),
    )
    children = {}
    for layer, made in saes.items():
        name, prefix = f"layer{layer}", f"layer{layer}_"
        if isinstance(made, Path):
            keep(made, context.output, name)
        scores = {key.removeprefix(prefix): value for key, value in outcome.metrics.items() if key.startswith(prefix)}
        children[name] = child(recipe.training_of(layer, hook, weights=1 + layer), made, name, scores)
    return StageResult(outcome.metrics, outcome.summary, children)


def _layers(plm: ProteinLM, hook: str) -> list[int]:
    """Every layer that has the hook."""
    found = []
    for layer in range(plm.num_layers + 1):
        try:
            plm.check_hook(layer, hook)
        except UserError:
            continue
        found.append(layer)
    return found


def _train(
    context: StageContext, recipe: Recipe, given: Inputs, layers: list[int]
) -> tuple[dict[int, Path | Failure], dict[int, Path]]:
    """Layer -> its SAE, of all but the given one; and layer -> the output folder that holds its activations.

    Layers that the given activations hold are not extracted again; the others are, in one pass of the model.
    """
    from plmsae.activations.metadata import read_metadata
    from plmsae.activations.places import find_stores
    from plmsae.stages.variants import attempted, extracted, trained

    folder = context.inputs["activations"]
    config = given.sae.config
    there = set(find_stores(folder))
    if not there:
        metadata = read_metadata(folder)
        there = {(metadata.layer, metadata.hook)}
    missing = [layer for layer in layers if (layer, config.hook) not in there]
    activations = dict.fromkeys(layers, folder)
    if missing:
        extraction = recipe.extraction_of(recipe.extraction.plm, given.plm.revision, missing, config.hook)
        activations |= dict.fromkeys(missing, extracted(context, extraction, "activations"))
    saes: dict[int, Path | Failure] = {}
    for layer in layers:
        if layer != config.layer:
            training, name = recipe.training_of(layer, config.hook, weights=1 + layer), f"layer{layer}"
            saes[layer] = attempted(context, name, trained, training, activations[layer], name)
    return saes, activations
