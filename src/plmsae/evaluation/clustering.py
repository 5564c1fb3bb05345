"""Sequential and structural clustering: whether a latent's activation lies around its strongest residue.

The statistics of InterPLM (Simon & Zou 2024, Methods), for which no code was released: of each latent at most 100
proteins with complete Cα coordinates on which its normalised activation exceeds 0.6, at least 25 of them; the score of
the residues around the strongest one (`clustering_pairs`) against its null by a paired t test and Cohen's d,
corrected by Bonferroni for the latents tested (`clustering_tests`). The null is the exact mean of the published
permutation, or the average of a few drawn permutations as published; all latents of a protein share its permutations,
and each latent is tested over proteins alone.

Beside the published numbers are variants: the null that holds the anchor out, structural neighbours that are no
neighbours in sequence, and a test of "structural only" that does not take a large p for no effect. Nothing is selected,
so that no split has to be held back; the splits are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.errors import DataError, UserError
from plmsae.evaluation.clustering_pairs import Floats, Ints, Neighbourhoods, Pairs, score_pairs
from plmsae.evaluation.clustering_report import report
from plmsae.evaluation.clustering_sample import PairSample, Sampled
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.units import Units
from plmsae.plms.batching import length_sorted_batches
from plmsae.plms.parallel import ordered_map
from plmsae.progress import Progress
from plmsae.proteins.coordinates import read_coordinates
from plmsae.proteins.hashing import unit_hash
from plmsae.proteins.structure_tables import STRUCTURES_FILE

_TITLE = "evaluate@clustering"


@dataclass(frozen=True)
class Structured:
    """Rows of `sequences.parquet`, with coordinates where structure is looked at.

    Attributes:
        table: The rows.
        coordinates: [length, 3] Å of each, NaN where a residue has none.
        num_left_out: Rows whose structure is missing or covers too little.
    """

    table: pd.DataFrame
    coordinates: list[Floats]
    num_left_out: int


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    splits: Sequence[str],
    structure: bool | None,
    max_proteins: int | None,
    min_coverage: float,
    threshold: float,
    min_proteins: int,
    sampled_proteins: int,
    window: int,
    radius: float,
    separations: Sequence[int],
    num_permutations: int | None,
    margin: float,
    alpha: float,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Measure clustering.

    Args:
        inputs: Proteins, SAE and model.
        output: Folder that gets `latents`, `pairs` and the figure.
        splits: Splits whose proteins are used.
        structure: Look at neighbours in structure too, on the proteins that have one; False: in sequence alone, on all
            proteins; None: in structure if `ingest` wrote structures.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_coverage: Share of a sequence's residues that need coordinates; 1 as published.
        threshold: Normalised activation that a protein needs to reach above.
        min_proteins: Proteins that a latent needs to be tested.
        sampled_proteins: The most that are taken per latent.
        window: Residues to either side in sequence.
        radius: Å between Cα atoms.
        separations: Sequence distances left out of the structural set; the last is used for "structural only".
        num_permutations: Permutations averaged per protein as published (5); None for the exact mean of that null.
        margin: The largest sequential effect that counts as none, as a share of the latent's maximum.
        alpha: Level of the tests.
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, sample, permutations and bootstrap.

    Raises:
        UserError: Structure is asked for and `ingest` was run without, or the separations do not ascend.
        DataError: No protein of the splits has a structure of that coverage.
    """
    if not separations or any(low >= high for low, high in pairwise([0, *separations])):
        raise UserError(
            f"separations {list(separations)} are not ascending numbers from 1", where="separations", fix="[2, 6]"
        )
    if structure is None:
        structure = (inputs.sequences / STRUCTURES_FILE).is_file()
    how = Neighbourhoods(window, radius, tuple(separations), structure)
    if structure:
        proteins = structured(inputs, splits, max_proteins, min_coverage, seed)
    else:
        proteins = every_protein(inputs, splits, max_proteins, seed)
    sampled = sample_pairs(
        inputs,
        Units("sae", inputs.sae),
        proteins,
        how,
        threshold=threshold,
        sampled_proteins=sampled_proteins,
        num_permutations=num_permutations,
        max_tokens=max_tokens,
        threads=threads,
        seed=seed,
    )
    return report(
        sampled,
        proteins.table,
        proteins.num_left_out,
        how,
        inputs.sae.config,
        output,
        splits=splits,
        threshold=threshold,
        min_proteins=min_proteins,
        num_permutations=num_permutations,
        margin=margin,
        alpha=alpha,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )


def structured(
    inputs: Inputs, splits: Sequence[str], max_proteins: int | None, min_coverage: float, seed: int
) -> Structured:
    """The proteins whose structure covers enough of them; see `evaluate`."""
    table = pd.concat([inputs.split(name, max_proteins, seed) for name in splits], ignore_index=True)
    found = read_coordinates(inputs.sequences, table)
    kept, coordinates = [], []
    for row, xyz in enumerate(found):
        if xyz is not None and np.isfinite(xyz[:, 0]).mean() >= min_coverage:
            kept.append(row)
            coordinates.append(xyz)
    if not kept:
        raise DataError(
            f"none of the {len(table):,} sequences of {', '.join(splits)} has coordinates for {min_coverage:.0%} of "
            "its residues",
            where=str(inputs.sequences / "structures.parquet"),
            fix="take AlphaFold DB's models (ingest.alphafold: true), which are complete, or lower min_coverage",
        )
    return Structured(table.iloc[kept].reset_index(drop=True), coordinates, len(table) - len(kept))


def every_protein(inputs: Inputs, splits: Sequence[str], max_proteins: int | None, seed: int) -> Structured:
    """All proteins, and no coordinates; see `evaluate`."""
    table = pd.concat([inputs.split(name, max_proteins, seed) for name in splits], ignore_index=True)
    return Structured(table, [np.full((length, 3), np.nan) for length in table["length"]], 0)


def sample_pairs(
    inputs: Inputs,
    units: Units,
    proteins: Structured,
    how: Neighbourhoods,
    *,
    threshold: float,
    sampled_proteins: int,
    num_permutations: int | None,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Sampled:
    """Run the model over the proteins and score the sampled pairs; see `evaluate`."""
    table = proteins.table
    sequences, accessions = table["sequence"].tolist(), table["accession"].tolist()
    offsets = table["offset"].to_numpy(dtype=np.int64)
    lengths = table["length"].to_numpy(dtype=np.int64)
    config = inputs.sae.config
    sample = PairSample(accessions, offsets, units.num_units, sampled_proteins, seed)

    def run(batch: Ints) -> Pairs:
        tokens = inputs.plm.tokenize([sequences[row] for row in batch], [accessions[row] for row in batch])
        activations = units.activations(inputs.plm.hidden(tokens, config.layer, config.hook))
        drawn = [
            _permutations(f"{accessions[row]}:{offsets[row]}", int(lengths[row]), num_permutations, seed)
            for row in (batch if num_permutations else [])
        ]
        starts = np.concatenate([[0], np.cumsum(lengths[batch])])
        places = np.concatenate([proteins.coordinates[row] for row in batch])
        pairs = score_pairs(activations, starts, places, how, threshold, drawn)
        pairs.row[:] = batch[pairs.row]
        return pairs

    with Progress(_TITLE, int(lengths.sum()), "residues") as progress:
        batches = length_sorted_batches(lengths, max_tokens)
        for batch, pairs in zip(batches, ordered_map(run, batches, threads), strict=True):
            sample.add(pairs)
            progress.update(int(lengths[batch].sum()))
    return sample.result()


def _permutations(name: str, length: int, number: int | None, seed: int) -> list[NDArray[np.int64]]:
    """Permutations that depend on the seed and the sequence alone, not on its batch."""
    rng = np.random.default_rng(int(unit_hash(seed, "permutations", name) * 2**53))
    return [rng.permutation(length) for _ in range(number or 0)]
