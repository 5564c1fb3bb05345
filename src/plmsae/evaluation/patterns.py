"""Families and activation patterns: what shape a latent's activations have, and whether it selects one family.

One pass over held-out proteins gives both, by the rules of InterProt (`activation_patterns`, `families`). The neurons
are asked about families too; a neuron is active nearly everywhere, so its pattern says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from plmsae.errors import DataError, UserError, did_you_mean
from plmsae.evaluation.activation_patterns import NUM_SEQUENCES, pattern_table
from plmsae.evaluation.concept_compare import Resampling
from plmsae.evaluation.families import F1_BOUND, family_intervals, family_table
from plmsae.evaluation.inputs import Inputs, Outcome
from plmsae.evaluation.labels import Ints
from plmsae.evaluation.pattern_report import FamilyResult, report
from plmsae.evaluation.probe_tasks import annotation_task, table_task
from plmsae.evaluation.residue_labels import Sparse
from plmsae.evaluation.top_sequences import Runs, TopSequences
from plmsae.evaluation.unit_stream import unit_batches
from plmsae.evaluation.units import Units, neurons
from plmsae.proteins.tables import read_sequences

_TITLE = "evaluate@patterns"
FAMILIES = ("domains", "clusters")
VARIANTS = ("plmsae", "interprot")
_FAMILY_TYPES = ("Domain", "DNA binding", "Repeat", "Zinc finger")
_WORTH_AN_INTERVAL = 0.5
_Peaks = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


def evaluate(
    inputs: Inputs,
    output: Path,
    *,
    splits: Sequence[str],
    max_proteins: int | None,
    families: str,
    labels: Path | None,
    min_members: int,
    variant: str,
    num_resamples: int,
    confidence: float,
    max_tokens: int,
    threads: int,
    seed: int,
) -> Outcome:
    """Classify every latent, and look for the family of each.

    Args:
        inputs: Proteins, annotations, SAE and model.
        output: Folder that gets `latents`, `families` (Parquet and CSV), `patterns.csv` and the figure.
        splits: Splits whose proteins are taken together.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        families: `domains` (what annotations of domains, repeats, zinc fingers and DNA binding name) or `clusters`
            (homology clusters of `ingest`).
        labels: A user's table of families, accession and label; instead of `families`.
        min_members: Proteins that a family needs to be asked about (InterProt: 1).
        variant: `plmsae`, or `interprot` for what its code does (see `activation_patterns` and `families`).
        num_resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        max_tokens: Tokens per batch.
        threads: Batches that are run at once; the numbers do not depend on it.
        seed: Seed of subset, halves and bootstrap (InterProt: 42).

    Raises:
        UserError: An unknown variant or source of families, or a label table of residues.
        DataError: A split is empty, a row of the table is wrong, or there are fewer than two proteins.
    """
    for name, value, known in (("variant", variant, VARIANTS), ("families", families, FAMILIES)):
        if value not in known:
            raise UserError(f"unknown {name} '{value}'", where=name, fix=did_you_mean(value, known))
    table = pd.concat([inputs.split(split, max_proteins, seed) for split in splits])
    proteins = table.sort_values(["accession", "offset"]).reset_index(drop=True)
    owners, accessions = pd.factorize(proteins["accession"], sort=True)
    owners, accessions = np.asarray(owners, dtype=np.int64), np.asarray(accessions, dtype=object)
    if len(accessions) < 2:
        raise DataError("families need at least two proteins", fix="raise max_proteins")
    methods = [Units("sae", inputs.sae), Units("neurons", neurons(inputs))]
    tops = TopSequences(methods[0].num_units, NUM_SEQUENCES)
    maxima: dict[str, list[_Peaks]] = {method.method: [] for method in methods}
    for batch in unit_batches(inputs, proteins, methods, title=_TITLE, max_tokens=max_tokens, threads=threads):
        maxima["sae"].append(_peaks(tops.add(batch.activations[0], batch.starts, batch.rows)))
        maxima["neurons"].append(_peaks(Runs.of(batch.activations[1], batch.starts, batch.rows)))
    exact = variant == "interprot"
    scales = inputs.sae.latent_max.double().numpy() if exact else None
    if scales is not None:
        scales = np.where(scales > 0, scales, 1.0)
    lengths = proteins["length"].to_numpy().astype(np.int64)
    latents = pattern_table(tops.result(), tops.highest, lengths, scales)
    latents.insert(2, "max_activation", tops.highest * inputs.sae.latent_max.double().numpy())
    latents.insert(3, "share_of_sequences", tops.active_sequences / len(proteins))
    latents.insert(4, "share_of_residues", tops.active_residues / int(lengths.sum()))
    members, names = _members(inputs, proteins, owners, len(accessions), families, labels)
    often = np.flatnonzero(members.getnnz(axis=0) >= min_members)
    members, names = members[:, often], names[often]
    how = Resampling(num_resamples, confidence, seed)
    results = []
    for method in methods:
        by_protein = _by_protein(maxima[method.method], owners, (len(accessions), method.num_units))
        found = family_table(by_protein, members, accessions, names, seed, interprot=exact)
        found["f1_low"], found["f1_high"] = np.nan, np.nan
        some = found["best"] & (found["f1_first_half"] > _WORTH_AN_INTERVAL)
        if some.any() and not exact:  # there the halves differ from unit to unit
            bounds = family_intervals(found[some], by_protein, members, names, seed, how)
            found.loc[some, "f1_low"], found.loc[some, "f1_high"] = bounds
        found.insert(0, "method", method.method)
        found.insert(2, "unit_name", [method.unit_name(int(unit)) for unit in found["latent"]])
        results.append(FamilyResult(method.method, method.num_units, found.rename(columns={"latent": "unit"})))
    source = "labels" if labels is not None else families
    return report(latents, results, len(accessions), len(names), source, variant, F1_BOUND, inputs.sae.config, output)


def _peaks(runs: Runs) -> _Peaks:
    """What is kept of all proteins: sequence, unit and largest activation of each run, 12 bytes."""
    return runs.sequences.astype(np.int32), runs.units.astype(np.int32), runs.highest


def _by_protein(peaks: Sequence[_Peaks], owners: Ints, shape: tuple[int, int]) -> Sparse:
    """[P, n] largest activation of each unit in each protein, over its windows."""
    sequences, units, values = (np.concatenate(parts) for parts in zip(*peaks, strict=True))
    rows = owners[sequences].astype(np.int32)
    order = np.lexsort((-values, units, rows))
    rows, units, values = rows[order], units[order], values[order]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows[1:] != rows[:-1]) | (units[1:] != units[:-1])
    return sparse.csr_matrix((values[first], (rows[first], units[first])), shape=shape)


def _members(
    inputs: Inputs, proteins: pd.DataFrame, owners: Ints, num_proteins: int, families: str, labels: Path | None
) -> tuple[Sparse, NDArray[np.object_]]:
    """[P, F] 0/1 families of each protein, and their names."""
    if labels is None and families == "clusters":
        numbers, names = pd.factorize(proteins["cluster"], sort=True)
        rows, columns = owners, np.asarray(numbers, dtype=np.int64)
    else:
        if labels is None:
            task = annotation_task("families", inputs.annotations(), _FAMILY_TYPES, specific=True, per_protein=True)
        else:
            task = table_task(labels, read_sequences(inputs.sequences), "negative")
            if not task.per_protein:
                raise UserError(
                    "families belong to proteins, not to residues", where=str(labels), fix="drop 'position'"
                )
        example, columns = np.nonzero(task.labels(proteins)[0])
        rows, names = owners[example], task.classes
    members = sparse.csr_matrix((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=(num_proteins, len(names)))
    members.data[:] = 1
    kept = [number for number, name in enumerate(names) if not (labels is None and str(name).endswith(": any"))]
    return members[:, kept], np.asarray(names, dtype=object)[kept]
