"""One training from its parameters to measured SAEs: sources, the training itself, maxima and held-out metrics.

`train_sae` is the case of one SAE, `sweep` that of many; each is what a training of its own gives, byte for byte.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from plmsae.activations.cache import BlockCache
from plmsae.activations.live import LiveReader, load
from plmsae.activations.metadata import StoreMetadata, read_metadata
from plmsae.activations.places import chosen_store
from plmsae.activations.reader import ActivationReader
from plmsae.artifacts.manifest import manifest_sha256
from plmsae.errors import UserError
from plmsae.saes.base import SparseAutoencoder
from plmsae.training.data import Scaled
from plmsae.training.export import held_out, measure_latent_max
from plmsae.training.interruption import Interruption
from plmsae.training.job import Feed
from plmsae.training.launch import train_apart, train_together
from plmsae.training.loop import Trained, train_all
from plmsae.training.member import Failed, Plan
from plmsae.training.metrics import ReconstructionMetrics
from plmsae.training.nodes import Nodes, device_of, train_on
from plmsae.training.parallel import way_of
from plmsae.training.parameters import TrainSaeParams
from plmsae.training.resolution import Resolved, resolve

logger = logging.getLogger("plmsae")


@dataclass(frozen=True)
class Inputs:
    """What a training reads and where it keeps its state.

    Attributes:
        activations: Output folder of `extract_activations`.
        sequences: File that `sequences` names, on this disk; None trains on stored rows.
        root: The working folder, which a relative path of a local PLM starts from.
        checkpoints: Folder for checkpoints of exactly this training.
        nodes: Starts processes on other machines; None where there are none.
    """

    activations: Path
    sequences: Path | None
    root: Path
    checkpoints: Path
    nodes: Nodes | None = None


@dataclass(frozen=True)
class Result:
    """A trained SAE and what was measured of it.

    Attributes:
        resolved: Its configuration and settings.
        sae: For raw activations, its latents' maxima measured.
        curves: One row per look at the training.
        measured: Sums over held-out rows.
        metrics: Flat name -> number.
        record: How it was trained, for `SaeConfig.training`.
    """

    resolved: Resolved
    sae: SparseAutoencoder
    curves: list[dict[str, float]]
    measured: ReconstructionMetrics
    metrics: dict[str, float]
    record: dict[str, Any]


def train_members(members: Mapping[str, TrainSaeParams], inputs: Inputs) -> dict[str, Result | Failed]:
    """Train SAEs on the same batches and measure each.

    Args:
        members: Name -> parameters; they differ in `grid.VARIABLE` alone.
        inputs: What they read.

    Returns:
        Name -> what became of it; only one that diverged where another did not is `Failed`.

    Raises:
        UserError: Parameters that do not fit each other or the store, or a device that is not there.
        DataError: Activations that are not finite or do not vary, or all trainings diverged.
        TryAgainError: The bucket that holds the activations cannot be reached; the next run goes on from the last
            checkpoint.
    """
    params = next(iter(members.values()))
    torch.set_num_threads(params.threads)
    store = chosen_store(inputs.activations, params.layer, params.hook, where="train_sae")
    metadata = read_metadata(store)
    nodes = _nodes(params, inputs)
    plans = {name: _resolved(name, member, metadata, len(members), nodes) for name, member in members.items()}
    settings, scale = plans[next(iter(plans))].settings, metadata.normaliser.scale
    way = way_of(params.parallel, params.num_processes, len(members), settings.batch_size, settings.device)
    order_seed = params.seed if params.order_seed is None else params.order_seed
    cache_mib = params.cache_mib if way == "one" else max(1, params.cache_mib // 2)  # the processes get as much
    with BlockCache(inputs.checkpoints / "blocks", cache_mib * 2**20) as cache, ExitStack() as stack:
        ahead = params.num_workers > 0

        def reader(split: str) -> ActivationReader:
            return ActivationReader(store, split, settings.batch_size, order_seed, cache=cache, ahead=ahead)

        source: ActivationReader | LiveReader
        if inputs.sequences is None:
            source = reader("train")
        else:
            plm, table = load(inputs.sequences, metadata, inputs.root, settings.device)
            size, threads = settings.batch_size, params.threads
            source = LiveReader(plm, table, "train", metadata, size, order_seed, threads=threads, ahead=ahead)
            stack.enter_context(source)
        chosen = [Plan(plan.config, plan.settings, members[name].kernel, name) for name, plan in plans.items()]
        feed = Feed(
            store=str(store),
            order_seed=order_seed,
            cache=str(inputs.checkpoints / "processes"),
            cache_mib=cache_mib,
            num_workers=params.num_workers,
            threads=max(1, params.threads // params.num_processes),
            sequences=None if inputs.sequences is None else str(inputs.sequences),
            root=str(inputs.root),
        )
        if nodes is not None:
            ended = train_on(nodes, chosen, feed, inputs.checkpoints, params.num_nodes * params.num_processes)
        elif way == "together":
            ended = train_together(chosen, feed, inputs.checkpoints, params.num_processes)
        elif way == "apart":
            ended = train_apart(chosen, feed, inputs.checkpoints, params.num_processes)
        else:
            valid = Scaled(reader("valid"), scale)
            ended = train_all(chosen, Scaled(source, scale), valid, inputs.checkpoints, num_workers=params.num_workers)
        trained = {name: end for name, end in zip(plans, ended, strict=True) if isinstance(end, Trained)}
        saes = [end.sae.with_unit_atoms().folded(scale) for end in trained.values()]
        with Interruption() as interruption, interruption.at_once():
            interruption.kept = "all its steps are done, and the last checkpoint is kept"
            latent_max_rows = measure_latent_max(saes, source, params.num_latent_max_rows)
            measured = held_out(saes, reader("valid"), params.num_test_rows)
    facts: dict[str, Any] = {
        "train_rows": source.num_rows,
        "latent_max_rows": latent_max_rows,
        "sequences_sha256": metadata.sequences_sha256,
        "activations_manifest_sha256": manifest_sha256(inputs.activations),
    }
    if params.sequences is not None:
        facts["train_sequences_sha256"] = params.sequences_sha256
    if nodes is not None or way == "together":  # sums over processes round otherwise than those of one
        facts["processes"] = params.num_nodes * params.num_processes
    found = dict(zip(trained, zip(saes, measured, strict=True), strict=True))
    return {
        name: _result(plans[name], end, *found[name], facts) if isinstance(end, Trained) else end
        for name, end in zip(plans, ended, strict=True)
    }


def _nodes(params: TrainSaeParams, inputs: Inputs) -> Nodes | None:
    """Where the processes run; None for this one.

    Raises:
        UserError: There is no cluster, or the pipeline was made for other numbers.
    """
    if inputs.nodes is not None:
        inputs.nodes.check(params.num_nodes, params.num_processes)
    elif params.num_nodes > 1:
        raise UserError(
            f"num_nodes = {params.num_nodes}, and this is one machine",
            where="train_sae.num_nodes",
            fix="run it on a cluster: plmsae submit (docs/how-to/multi-node.md), or set it to 1",
        )
    return inputs.nodes


def _resolved(
    name: str, params: TrainSaeParams, metadata: StoreMetadata, num_members: int, nodes: Nodes | None
) -> Resolved:
    values = params.model_dump()
    device = None if nodes is None else device_of(nodes, params.device)
    try:
        resolved = resolve(values if device is None else {**values, "device": "cpu"}, metadata)
    except UserError as error:
        if num_members == 1:
            raise
        raise UserError(f"member '{name}': {error.problem}", where=error.where, fix=error.fix) from error
    if device is not None:
        settings = replace(resolved.settings, device=device)
        resolved = replace(resolved, settings=settings, record=resolved.record | {"device": device})
    record = resolved.record | {"options": dict(resolved.config.options)}
    logger.info("%s: %s", name, json.dumps(record, sort_keys=True))
    return resolved


def _result(
    resolved: Resolved,
    trained: Trained,
    sae: SparseAutoencoder,
    measured: ReconstructionMetrics,
    facts: Mapping[str, Any],
) -> Result:
    last = trained.curves[-1]
    metrics = {
        **measured.compute(),
        "loss": last["loss"],
        "train_fvu": last["fvu"],
        "train_dead_fraction": trained.dead_fraction,
        "training_tokens": resolved.record["tokens"],
        "training_epochs": resolved.record["tokens"] / facts["train_rows"],
    }
    record: dict[str, Any] = {**resolved.record, **facts}
    if "penalty" in last:  # with a controller it is what the training ended with
        record["penalty"] = metrics["penalty"] = last["penalty"]
    return Result(resolved, sae, trained.curves, measured, metrics, record)
