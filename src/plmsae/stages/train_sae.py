"""Stage `train_sae`: a sparse autoencoder on the rows of an activation store, exported for raw activations."""

from __future__ import annotations

from plmsae.stages.spec import Input, Plot, Resources, Stage, StageContext, StageResult
from plmsae.training.parameters import TrainSaeParams

STAGE = Stage(
    id="train_sae",
    summary="Train a sparse autoencoder on stored activations and export it for raw activations.",
    params=TrainSaeParams,
    inputs=(Input("activations", "activations", "extract_activations"),),
    kind="sae",
    run="plmsae.stages.train_sae:run",
    code=("activations", "artifacts", "figures.py", "plms", "saes", "training"),
    optional_files=("sequences",),
    knobs=("architecture", "expansion_factor", "k", "tokens", "seed"),
    resources=Resources(cpu=4, memory_gib=8, gpu=1, retry="gpu", timeout_hours=24),
    resumable=True,
    plots=(
        Plot("curves.csv", "tokens", ("fvu", "valid_fvu"), "Fraction of variance unexplained"),
        Plot("curves.csv", "tokens", ("loss",), "Training loss"),
        Plot("curves.csv", "tokens", ("l0", "valid_l0"), "Active latents per residue (L0)"),
        Plot("curves.csv", "tokens", ("dead_fraction", "valid_dead_fraction"), "Share of latents that did not fire"),
        Plot("density.csv", "log10_density", ("num_latents",), "How often latents fire"),
    ),
    tracked=True,
)


def run(context: StageContext) -> StageResult:
    """Train in normalised space, fold the normaliser, measure on held-out proteins, write the SAE.

    Raises:
        UserError: Parameters that do not fit each other or the store, or a device that is not there.
        DataError: Activations that are not finite or do not vary, or a training that diverged.
        TryAgainError: The bucket that holds the activations cannot be reached; the next run goes on from the last
            checkpoint.
    """
    from plmsae.training.output import summary, write_result
    from plmsae.training.session import Inputs, Result, train_members

    params: TrainSaeParams = context.params
    sequences = context.sources.get("sequences")
    inputs = Inputs(context.inputs["activations"], sequences, context.root, context.checkpoints, context.nodes)
    result = train_members({STAGE.id: params}, inputs)[STAGE.id]
    assert isinstance(result, Result)  # one that diverges alone raises
    write_result(result, context.output)
    return StageResult(metrics=result.metrics, summary=summary(result))
