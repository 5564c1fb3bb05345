"""Stage `train_sae`: a sparse autoencoder on the rows of an activation store, exported for raw activations."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from plmsae.saes import sparsity
from plmsae.stages.spec import Input, Plot, Resources, Stage, StageContext, StageResult
from plmsae.training.parameters import SELECTS_K, TrainSaeParams

if TYPE_CHECKING:
    from plmsae.training.resolution import Resolved

logger = logging.getLogger("plmsae")

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
        Plot("curves.csv", "tokens", ("l0",), "Active latents per residue (L0)"),
        Plot("curves.csv", "tokens", ("dead_fraction",), "Share of dead latents"),
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
    import torch

    from plmsae.activations.cache import BlockCache
    from plmsae.activations.live import LiveReader, load
    from plmsae.activations.metadata import read_metadata
    from plmsae.activations.places import chosen_store
    from plmsae.activations.reader import ActivationReader
    from plmsae.artifacts.manifest import manifest_sha256
    from plmsae.training.data import Scaled
    from plmsae.training.export import export, held_out, measure_latent_max
    from plmsae.training.figures import draw_curves, draw_density
    from plmsae.training.loop import train
    from plmsae.training.resolution import resolve
    from plmsae.training.tables import write_csv

    params: TrainSaeParams = context.params
    torch.set_num_threads(params.threads)
    store = chosen_store(context.inputs["activations"], params.layer, params.hook, where="train_sae")
    metadata = read_metadata(store)
    resolved = resolve(params.model_dump(), metadata)
    config, settings = resolved.config, resolved.settings
    logger.info("train_sae: %s", json.dumps(resolved.record | {"options": dict(config.options)}, sort_keys=True))

    scale = metadata.normaliser.scale
    with BlockCache(context.checkpoints / "blocks", params.cache_mib * 2**20) as cache, ExitStack() as stack:
        ahead = params.num_workers > 0

        def reader(split: str) -> ActivationReader:
            return ActivationReader(store, split, settings.batch_size, params.seed, cache=cache, ahead=ahead)

        source: ActivationReader | LiveReader
        if params.sequences is None:
            source = reader("train")
        else:
            plm, table = load(context.sources["sequences"], metadata, context.root, settings.device)
            size, seed, threads = settings.batch_size, params.seed, params.threads
            source = LiveReader(plm, table, "train", metadata, size, seed, threads=threads, ahead=ahead)
            stack.enter_context(source)
        trained = train(
            config,
            params.kernel,
            Scaled(source, scale),
            Scaled(reader("valid"), scale),
            settings,
            context.checkpoints,
            num_workers=params.num_workers,
        )
        sae = trained.sae.with_unit_atoms().folded(scale)
        latent_max_rows = measure_latent_max(sae, source, params.num_latent_max_rows)
        measured = held_out(sae, reader("valid"), params.num_test_rows)
    last = trained.curves[-1]
    metrics = {
        **measured.compute(),
        "loss": last["loss"],
        "train_fvu": last["fvu"],
        "train_dead_fraction": trained.dead_fraction,
        "training_tokens": resolved.record["tokens"],
        "training_epochs": resolved.record["tokens"] / source.num_rows,
    }
    record: dict[str, Any] = {
        **resolved.record,
        "train_rows": source.num_rows,
        "latent_max_rows": latent_max_rows,
        "sequences_sha256": metadata.sequences_sha256,
        "activations_manifest_sha256": manifest_sha256(context.inputs["activations"]),
    }
    if params.sequences is not None:
        record["train_sequences_sha256"] = params.sequences_sha256
    if "penalty" in last:  # with a controller it is what the training ended with
        record["penalty"] = metrics["penalty"] = last["penalty"]
    export(sae, record, metrics, context.output / "sae")
    histogram = measured.density_histogram()
    num_silent = int((measured.counts == 0).sum())
    write_csv(context.output / "curves.csv", trained.curves)
    write_csv(
        context.output / "density.csv", [{"log10_density": low, "num_latents": number} for low, number in histogram]
    )
    selects = params.architecture in SELECTS_K
    wanted = config.k if selects else config.options.get("target_l0")
    extra = "AuxK" if selects else "penalty"
    draw_curves(trained.curves, wanted, extra, context.output / "figures" / "curves.png")
    draw_density(histogram, num_silent, measured.num_tokens, context.output / "figures" / "density.png")
    return StageResult(metrics=metrics, summary=_summary(resolved, metrics))


def _summary(resolved: Resolved, metrics: Mapping[str, float]) -> str:
    config = resolved.config
    return (
        f"A {config.architecture} SAE with {config.dictionary_size:,} latents ({sparsity(config)}) on layer "
        f"{config.layer} ({config.hook}) of {config.plm}, trained on {metrics['training_tokens']:,} residues "
        f"({metrics['training_epochs']:.1f} epochs, {resolved.record['steps']:,} steps). On {metrics['num_tokens']:,} "
        f"residues of held-out proteins it leaves {metrics['fvu']:.1%} of the variance unexplained with "
        f"{metrics['l0']:.1f} latents active per residue; {metrics['dead_fraction']:.1%} of the latents never fire "
        "there."
    )
