"""Scores by which one of several SAEs is chosen, all on validation proteins: the test split is never read.

`fidelity_scores` is the first protocol of `fidelity`, masked or causal as the model was trained: loss recovered against
the mean ablation, in percent.
`concept_scores` is the protocol of `concepts`, with the validation split cut into two parts that share no homology
cluster: unit and threshold of each concept are selected on one and scored on the other. InterPLM (Simon & Zou 2024)
selects and scores models on the same 20 % of validation; there the F1 of the best of n units grows with n alone, and
large dictionaries win for nothing. With `scored_share` 0.2 the SAE is chosen by as much of validation as there.

The model runs once for all SAEs, not once for each; no intervals are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.evaluation import concept_data
from plmsae.evaluation.bootstrap import Floats
from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.passes import Predictors, run_split
from plmsae.evaluation.protocols import Batch, protocols_of, together
from plmsae.evaluation.scores import f1_of, score, select
from plmsae.evaluation.splice import CLEAN, MEAN, Reconstruction, Replacement, losses
from plmsae.evaluation.units import Units
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress
from plmsae.saes.base import SparseAutoencoder

_TITLE = "selection"
# Counts of every unit, concept and threshold are in memory at once; more units than these run in several passes.
UNITS_AT_ONCE = 65_536
_SMALLEST_GAP = 1e-9  # nats between the ablation and the clean model, as in `fidelity`


def fidelity_scores(
    inputs: Inputs,
    saes: Mapping[str, SparseAutoencoder],
    *,
    max_proteins: int | None,
    masked_share: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> dict[str, float]:
    """Percent of the masked or causal loss that each SAE recovers on validation proteins, per residue; not clipped.

    Args:
        inputs: Proteins, model and mean activation; its SAE is one of them.
        saes: Name -> SAE; all of the same layer and hook.
        max_proteins: A seeded subset of the validation proteins; None for all.
        masked_share: Share of each sequence's residues that are masked, the same ones for all SAEs.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset and masking.

    Raises:
        DataError: No validation proteins, or an ablation that costs nothing.
    """
    proteins = inputs.split("valid", max_proteins, seed)
    sequences = proteins["sequence"].tolist()
    keys = [f"{name}:{offset}" for name, offset in zip(proteins["accession"], proteins["offset"], strict=True)]

    def run(batch: NDArray[np.int64]) -> tuple[int, dict[str, float]]:
        chosen, names = [sequences[row] for row in batch], [keys[row] for row in batch]
        sums = _losses(inputs, saes, chosen, names, masked_share, seed)
        return sum(map(len, chosen)), sums

    totals = dict.fromkeys((CLEAN, MEAN, *(f"sae:{name}" for name in saes)), 0.0)
    with Progress(_TITLE, int(proteins["length"].sum()), "residues") as progress:
        batches = length_sorted_batches(proteins["length"].to_numpy(), max_tokens)
        for num_residues, sums in ordered_map(run, batches, threads):
            for name, value in sums.items():
                totals[name] += value
            progress.update(num_residues)
    gap = totals[MEAN] - totals[CLEAN]
    if abs(gap) <= _SMALLEST_GAP:
        raise DataError(
            "the model loses nothing when its hidden states are replaced by their mean",
            where="validation proteins",
            fix="choose by fvu or concepts",
        )
    return {name: 100 * (totals[MEAN] - totals[f"sae:{name}"]) / gap for name in saes}


@torch.no_grad()
def _losses(
    inputs: Inputs,
    saes: Mapping[str, SparseAutoencoder],
    sequences: Sequence[str],
    keys: Sequence[str],
    masked_share: float,
    seed: int,
) -> dict[str, float]:
    """Summed cross-entropy of what is scored: `clean`, `mean`, and `sae:<name>` of each SAE."""
    plm, mean = inputs.plm, inputs.mean
    batch = Batch.of(plm, sequences, keys)
    functions: dict[str, Replacement] = {MEAN: lambda x: mean.to(x.dtype).expand_as(x)}
    functions |= {f"sae:{name}": Reconstruction(sae) for name, sae in saes.items()}
    case = together(plm, batch, protocols_of(plm, 0)[0], masked_share=masked_share, seed=seed)
    found = losses(plm, inputs.sae, functions, case.tokens, case.rows, batch.targets[case.scored])
    return {name: float(found[f"ce_{name}"].sum()) for name in (CLEAN, *functions)}


def concept_scores(
    inputs: Inputs,
    saes: Mapping[str, SparseAutoencoder],
    *,
    max_proteins: int | None,
    min_instances: int,
    min_proteins: int,
    thresholds: Sequence[float],
    max_tokens: int,
    threads: int,
    seed: int,
    scored_share: float = 0.5,
) -> dict[str, float]:
    """Mean F1 over concepts of each SAE's best units, on the part of the validation split that did not choose them.

    Args:
        inputs: Proteins, annotations and model; its SAE is one of them.
        saes: Name -> SAE; all of the same layer and hook.
        max_proteins: A seeded subset of the validation proteins; None for all.
        min_instances: Annotations that a concept needs in each part.
        min_proteins: Proteins with one that it needs in each part.
        thresholds: Ascending thresholds on normalised activations.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of the subset and of the cut.
        scored_share: Share of the validation residues that score; the others select units and thresholds.

    Returns:
        Name -> score in [0, 1]; 0 for an SAE that never fired on the training residues.

    Raises:
        DataError: No validation proteins, or no concept that is frequent enough.
    """
    first, second = cut(inputs.split("valid", max_proteins, seed), seed, scored_share)
    data = concept_data.build(
        inputs.annotations(), {"valid": first, "test": second}, min_instances, min_proteins, max_tokens
    )
    if not data.concepts:
        raise DataError(
            f"no concept has {min_instances} annotations in {min_proteins} proteins of both parts of the validation "
            "split",
            where="annotations.parquet",
            fix="choose by fidelity or fvu, lower sweep.min_instances, or raise sweep.max_proteins",
        )
    scores = dict.fromkeys(saes, 0.0)
    firing = [Units(name, sae) for name, sae in saes.items() if bool((sae.latent_max > 0).any())]
    for methods in _groups(firing):
        for method, f1 in zip(methods, _concept_f1(inputs, data, methods, thresholds, threads), strict=True):
            scores[method.method] = float(f1.mean())
    return scores


def _concept_f1(
    inputs: Inputs,
    data: concept_data.ConceptData,
    methods: Sequence[Units],
    thresholds: Sequence[float],
    threads: int,
) -> list[Floats]:
    """Per method, F1 [C] of its selected units on the second part."""
    residues, instances = data.valid.labels.num_residues_of(), data.valid.labels.num_instances_of()
    found = run_split(inputs, data.valid, methods, thresholds, title=_TITLE, threads=threads)
    predictors = []
    while found.counts:  # counts are as large as the F1 they become
        counts = found.counts.pop(0)
        predictors.append(Predictors.of(select(f1_of(counts, residues, instances, data.residue_level))))
    again = run_split(
        inputs, data.test, methods, thresholds, title=_TITLE, threads=threads, predictors=predictors, count=False
    )
    residues, instances = data.test.labels.num_residues_of(), data.test.labels.num_instances_of()
    return [
        score(
            rows.true_positives.sum(axis=0),
            rows.hits.sum(axis=0),
            rows.active.sum(axis=0),
            residues,
            instances,
            data.residue_level,
        ).f1
        for rows in again.rows
    ]


def cut(proteins: pd.DataFrame, seed: int, share: float = 0.5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two parts, with every homology cluster whole in one of them.

    Args:
        proteins: Rows of `sequences.parquet`.
        seed: Seed of the order in which clusters are dealt, each to the part that lacks more of its share so far.
        share: Share of the residues that the second part gets, off by less than the longest cluster.

    Raises:
        DataError: There is one homology cluster.
    """
    lengths = proteins.groupby("cluster", sort=True)["length"].sum()
    parts: tuple[list[str], list[str]] = ([], [])
    totals = [0, 0]
    for place in np.random.default_rng(seed).permutation(len(lengths)):
        shorter = int(totals[1] * (1 - share) < totals[0] * share)
        parts[shorter].append(str(lengths.index[place]))
        totals[shorter] += int(lengths.iloc[place])
    first, second = (proteins[proteins["cluster"].isin(part)].reset_index(drop=True) for part in parts)
    if second.empty:
        raise DataError(
            "the validation split has one homology cluster, and scores need a second one",
            where="sequences.parquet",
            fix="take more proteins, or choose by fidelity or fvu",
        )
    return first, second


def _groups(methods: Sequence[Units]) -> list[list[Units]]:
    """In order, so many at once that their counts fit into memory."""
    groups: list[list[Units]] = []
    held = 0
    for method in methods:
        if not groups or held + method.num_units > UNITS_AT_ONCE:
            groups.append([])
            held = 0
        groups[-1].append(method)
        held += method.num_units
    return groups
