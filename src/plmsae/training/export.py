"""From a trained SAE to one that others can use: raw activations in, maxima measured, a card beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plmsae.saes import save, sparsity
from plmsae.saes.base import SparseAutoencoder
from plmsae.saes.config import SaeConfig
from plmsae.saes.matryoshka import Matryoshka
from plmsae.training.data import BatchSource, rows
from plmsae.training.metrics import ReconstructionMetrics

CARD = "MODEL_CARD.md"
_METRICS = {
    "fvu": "fraction of variance unexplained",
    "l0": "active latents per residue",
    "cosine": "mean cosine of activation and reconstruction",
    "l2_ratio": "mean norm ratio of reconstruction and activation",
    "relative_reconstruction_bias": "relative reconstruction bias (1 is none, below 1 is shrinkage)",
    "dead_fraction": "share of latents that never fire",
    "dense_fraction": "share of latents that fire on more than a tenth of the residues",
}


@torch.no_grad()
def measure_latent_max(saes: Sequence[SparseAutoencoder], source: BatchSource, num_rows: int) -> int:
    """Set `latent_max` of each SAE to the largest value of each latent over the first rows of a stream.

    Returns:
        Number of rows that were looked at; they are read once for all SAEs.
    """
    highest = [torch.zeros_like(sae.latent_max) for sae in saes]
    seen = 0
    for x in rows(source, num_rows):
        for sae, high in zip(saes, highest, strict=True):
            indices, values = sae.encode_sparse(x)
            high.scatter_reduce_(0, indices.flatten(), values.flatten(), reduce="amax")
        seen += len(x)
    for sae, high in zip(saes, highest, strict=True):
        sae.latent_max.copy_(high)
    return seen


def held_out(saes: Sequence[SparseAutoencoder], source: BatchSource, num_rows: int) -> list[ReconstructionMetrics]:
    """Reconstruction metrics of each SAE over the first rows of a stream of held-out activations, read once for all.

    Those of a matryoshka SAE are of every nested prefix too.
    """
    metrics = []
    for sae in saes:
        prefixes = sae.prefixes if isinstance(sae, Matryoshka) else ()
        metrics.append(ReconstructionMetrics(sae.config.d_model, sae.config.dictionary_size, prefixes))
    for x in rows(source, num_rows):
        for sae, metric in zip(saes, metrics, strict=True):
            metric.update(sae, x)
    return metrics


def export(sae: SparseAutoencoder, record: Mapping[str, Any], metrics: Mapping[str, float], folder: Path) -> None:
    """Write `sae.safetensors`, `config.json` and a draft of `MODEL_CARD.md`.

    Args:
        sae: Folded, with its maxima measured.
        record: The training record of `config.json`: no paths, times or hosts.
        metrics: Held-out metrics for the card.
        folder: Folder to write.
    """
    sae.config = sae.config.replace(training=dict(record))
    save(sae, folder)
    (folder / CARD).write_text(card(sae.config, metrics, sae.latent_max), encoding="utf-8")


def card(config: SaeConfig, metrics: Mapping[str, float], latent_max: Tensor) -> str:
    """What the SAE is, in words; registration adds the evaluation."""
    record = config.training
    active = sparsity(config)
    if active == f"k = {config.k}":
        active = f"at most {config.k} active"
    numbers = "\n".join(f"| {label} | {metrics[name]:.4g} |" for name, label in _METRICS.items())
    return f"""# {config.architecture} SAE of {config.plm}, layer {config.layer}

{config.dictionary_size:,} latents over activations of width {config.d_model}, {active} per residue.

| | |
|---|---|
| protein language model | {config.plm}, revision {config.plm_revision} |
| where | layer {config.layer}, hook {config.hook}; residues only |
| input | raw activations: the normaliser (1/{config.normaliser["scale"]:.6g}) is folded into the biases |
| trained on | {record["tokens"]:,} tokens from {record["train_rows"]:,} residues |
| sequences | sha256 {record["sequences_sha256"]} |
| batch, steps, learning rate | {record["batch_size"]}, {record["steps"]:,}, {record["learning_rate"]:.3g} |
| kernel, threads, seed | {record["kernel"]}, {record["threads"]}, {record["seed"]} |
| latent maxima | over {record["latent_max_rows"]:,} training residues; {int((latent_max > 0).sum()):,} latents fired |

On {int(metrics["num_tokens"]):,} residues of held-out proteins:

| | |
|---|---|
{numbers}

The language model may have seen these proteins: the splits are clean for the SAE only. What the latents mean is not
said here; a latent that is never active is kept, so that indices stay.
"""
