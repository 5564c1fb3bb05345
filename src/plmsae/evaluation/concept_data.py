"""Proteins, concepts and labels of the concept evaluation, in the order in which batches are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.evaluation.derived_concepts import Derived, derived_annotations
from plmsae.evaluation.inputs import Proteins
from plmsae.evaluation.labels import Concept, check_positions, concepts_of, evaluated_concepts
from plmsae.evaluation.residue_labels import Labels
from plmsae.plms.batching import length_sorted_batches
from plmsae.proteins.feature_types import PAIR_TYPES

SPLITS = ("valid", "test")


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        proteins: Rows of `sequences.parquet` in batch order.
        batches: First row of every batch, and the number of rows at the end.
        labels: Labels of the rows, in the same order.
    """

    proteins: pd.DataFrame
    batches: NDArray[np.int64]
    labels: Labels

    @property
    def owners(self) -> NDArray[np.int64]:
        """[num_rows] number of the protein that each row is (a window) of."""
        return np.asarray(pd.factorize(self.proteins["accession"], sort=True)[0], dtype=np.int64)


@dataclass(frozen=True)
class ConceptData:
    """What the evaluation scores.

    Attributes:
        concepts: The C concepts, derived ones last.
        table: One row per concept: concept, type, subtype, recall_over, and num_instances_*, num_residues_* and
            num_proteins_* of both splits.
        left_out: Concepts that are not scored, and why; without derived ones.
        derived_left_out: The same for derived ones.
        valid: Split for selection.
        test: Split for the reported numbers.
    """

    concepts: tuple[Concept, ...]
    table: pd.DataFrame
    left_out: pd.DataFrame
    derived_left_out: pd.DataFrame
    valid: Split
    test: Split

    @property
    def residue_level(self) -> NDArray[np.bool_]:
        """[C] true where recall counts residues."""
        return np.array([concept.residue_level for concept in self.concepts], dtype=bool)

    @property
    def num_named(self) -> int:
        """Concepts that are not derived; they come first."""
        return sum(not concept.derived for concept in self.concepts)

    def part(self, derived: bool) -> ConceptData:
        """Only the derived concepts, or only the others, of the same splits, whose labels stay whole."""
        which = slice(self.num_named, None) if derived else slice(0, self.num_named)
        return replace(
            self,
            concepts=self.concepts[which],
            table=self.table.iloc[which].reset_index(drop=True),
            left_out=self.derived_left_out if derived else self.left_out,
        )

    def sizes(self) -> dict[str, int]:
        """What was scored on how much, as metrics."""
        return {
            "num_concepts": len(self.concepts),
            "num_concepts_left_out": len(self.left_out),
            "num_proteins_valid": int(self.valid.proteins["accession"].nunique()),
            "num_proteins_test": int(self.test.proteins["accession"].nunique()),
            "num_residues_valid": self.valid.labels.num_residues,
            "num_residues_test": self.test.labels.num_residues,
        }


def load(
    inputs: Proteins,
    *,
    max_proteins: int | None,
    min_instances: int,
    min_proteins: int,
    max_tokens: int,
    seed: int,
    derived: Sequence[Derived] = (),
) -> ConceptData:
    """Read annotations, choose concepts and build labels.

    Args:
        inputs: Proteins and annotations.
        max_proteins: A seeded subset of this many proteins per split; None for all.
        min_instances: Annotations that a concept needs in each split.
        min_proteins: Proteins with one that it needs in each split.
        max_tokens: Tokens per batch.
        seed: Seed of the subset.
        derived: Derived concepts to label as well.

    Raises:
        DataError: An annotation outside its sequence, or two rows with one accession and offset.
    """
    proteins = {split: inputs.split(split, max_proteins, seed) for split in SPLITS}
    return build(inputs.annotations(), proteins, min_instances, min_proteins, max_tokens, derived)


def build(
    annotations: pd.DataFrame,
    proteins: Mapping[str, pd.DataFrame],
    min_instances: int,
    min_proteins: int,
    max_tokens: int,
    derived: Sequence[Derived] = (),
) -> ConceptData:
    """Choose concepts and build labels for given proteins.

    Args:
        annotations: Of all proteins.
        proteins: `valid` and `test` -> rows of `sequences.parquet` to select and to score on.
        min_instances: See `load`.
        min_proteins: See `load`.
        max_tokens: See `load`.
        derived: See `load`.

    Raises:
        DataError: See `load`.
    """
    concepts, membership = concepts_of(annotations)
    if derived:
        concepts, membership, annotations = _with_derived(annotations, concepts, membership, proteins, derived)
    ordered, starts, rows = {}, {}, {}
    for split in SPLITS:
        batches = length_sorted_batches(proteins[split]["length"].to_numpy(), max_tokens)
        ordered[split] = proteins[split].iloc[np.concatenate(batches)].reset_index(drop=True)
        starts[split] = np.concatenate([[0], np.cumsum([len(batch) for batch in batches])])
        rows[split] = _rows_of(annotations, ordered[split])
    inside = {split: np.flatnonzero(rows[split] >= 0) for split in SPLITS}
    chosen, left_out = evaluated_concepts(
        concepts,
        [membership[inside[split]] for split in SPLITS],
        [annotations["accession"].to_numpy()[inside[split]] for split in SPLITS],
        min_instances=min_instances,
        min_proteins=min_proteins,
    )
    number = np.full(len(concepts) + 1, -1, dtype=np.int64)  # the last place is for "none", -1
    number[chosen] = np.arange(len(chosen))
    splits = {}
    for split in SPLITS:
        part = annotations.iloc[inside[split]]
        owner = rows[split][inside[split]]
        lengths = ordered[split]["length"].to_numpy().astype(np.int64)
        check_positions(part, lengths[owner])
        labels = Labels.build(
            lengths=lengths,
            rows=owner,
            starts=part["start"].to_numpy().astype(np.int64),
            ends=part["end"].to_numpy().astype(np.int64),
            paired=part["type"].isin(PAIR_TYPES).to_numpy(),
            concepts=number[membership[inside[split]]],
            num_concepts=len(chosen),
        )
        splits[split] = Split(proteins=ordered[split], batches=starts[split], labels=labels)
    kept = tuple(concepts[index] for index in chosen)
    of_derived = left_out["concept"].isin([concept.name for concept in concepts if concept.derived])
    return ConceptData(
        kept,
        _table(kept, splits),
        left_out=left_out[~of_derived].reset_index(drop=True),
        derived_left_out=left_out[of_derived].reset_index(drop=True),
        valid=splits["valid"],
        test=splits["test"],
    )


def _with_derived(
    annotations: pd.DataFrame,
    concepts: tuple[Concept, ...],
    membership: NDArray[np.int64],
    proteins: Mapping[str, pd.DataFrame],
    derived: Sequence[Derived],
) -> tuple[tuple[Concept, ...], NDArray[np.int64], pd.DataFrame]:
    """Concepts, membership and annotations of the splits' proteins, with derived ones after the others."""
    table = pd.concat([proteins[split] for split in SPLITS], ignore_index=True)
    row = _rows_of(annotations, table)
    inside = np.flatnonzero(row >= 0)
    annotations, membership = annotations.iloc[inside].reset_index(drop=True), membership[inside]
    lengths = table["length"].to_numpy().astype(np.int64)[row[inside]]
    found, which = derived_annotations(annotations, concepts, membership, lengths, derived)
    more = np.stack([len(concepts) + which, np.full(len(which), -1)], axis=1)
    return (
        (*concepts, *(one.concept for one in derived)),
        np.concatenate([membership, more]),
        pd.concat([annotations, found], ignore_index=True),
    )


def _rows_of(annotations: pd.DataFrame, proteins: pd.DataFrame) -> NDArray[np.int64]:
    """[A] row of each annotation in `proteins`, -1 if it belongs to none of them."""
    keys = pd.MultiIndex.from_frame(proteins[["accession", "offset"]])
    if not keys.is_unique:
        twice = keys[keys.duplicated()][0]
        raise DataError(f"'{twice[0]}' stands twice", where="sequences.parquet", fix="run ingest again")
    wanted = pd.MultiIndex.from_frame(annotations[["accession", "offset"]])
    return np.asarray(keys.get_indexer(wanted), dtype=np.int64)


def _table(concepts: tuple[Concept, ...], splits: dict[str, Split]) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "concept": [concept.name for concept in concepts],
            "type": [concept.type for concept in concepts],
            "subtype": [concept.subtype for concept in concepts],
            "recall_over": ["residues" if concept.residue_level else "instances" for concept in concepts],
        }
    )
    for split, data in splits.items():
        per_row = data.labels.instances_per_row()
        proteins = np.zeros((int(data.owners.max(initial=-1)) + 1, len(concepts)), dtype=bool)
        np.logical_or.at(proteins, data.owners, per_row > 0)
        table[f"num_instances_{split}"] = data.labels.num_instances_of()
        table[f"num_residues_{split}"] = data.labels.num_residues_of()
        table[f"num_proteins_{split}"] = proteins.sum(axis=0)
    return table
