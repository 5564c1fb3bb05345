"""Swiss-Prot annotations -> concepts and residue labels (InterPLM's protocol, free of its defects).

Every annotation belongs to a type-level concept (`Domain: any`, or just `Helix` for a type whose annotations carry
no name) and, if its note or ligand names something, to a specific one (`Domain: SH3`, `Binding site: ATP`). Unlike
InterPLM (Simon & Zou 2024, `extract_annotations.py`), `SH3 1` and `SH3 2` are one concept,
ligands and annotations without a note are kept, rare names still count towards the type, each annotation stays an
instance of its own where annotations overlap, and amino-acid identity is not a concept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.errors import DataError
from plmsae.proteins.feature_types import BOOKKEEPING_TYPES

Ints = NDArray[np.int64]

# Annotated per residue, so that recall counts residues. All other types are stretches: recall counts instances.
RESIDUE_LEVEL_TYPES = frozenset(
    {
        "Active site",
        "Cross-link",
        "Disulfide bond",
        "Glycosylation",
        "Initiator methionine",
        "Lipidation",
        "Modified residue",
        "Site",
    }
)
# What a note says of these is not a kind of thing (evidence, partner, a gene's name): one concept per type.
NAMELESS_TYPES = frozenset(
    {"Beta strand", "Coiled coil", "Disulfide bond", "Helix", "Initiator methionine", "Signal peptide", "Turn"}
)
# Not properties of a residue's place in the protein: book-keeping, the mature product as a whole, and
# `Non-standard residue`, which is amino-acid identity.
EXCLUDED_TYPES = BOOKKEEPING_TYPES | {"Non-standard residue", "Peptide"}
_EVIDENCE = re.compile(r"\{[^}]*\}")
_QUALIFIER = re.compile(r"\s*\(?\b(?:by similarity|potential|probable)\b\)?\.?\s*$", re.IGNORECASE)
_WORD = re.compile(r"[A-Z][a-z]{2}")  # `Substrate` and `substrate` are one ligand; `Zn(2+)` and `ATP` stay
_INSTANCE = re.compile(r"\s+\d+$")
_ORDINAL = re.compile(r"\d+[A-Za-z]?(?:[-.]\d+)*")
# Repeats are also numbered `A`, `IV`, `B-2`; elsewhere such notes are names (the J and the C2 domain).
_REPEAT_ORDINAL = re.compile(r"(?:[A-Z]|[IVX]+)(?:[-.]?\d+)*")


@dataclass(frozen=True)
class Concept:
    """A concept.

    Attributes:
        name: Unique name for people, e.g. `Domain: SH3`.
        type: Annotation type, e.g. `Domain`.
        subtype: What note or ligand names, without instance numbers; empty for the type-level concept.
        derived: True for one that annotations imply and none names (`derived_concepts`).
    """

    name: str
    type: str
    subtype: str
    derived: bool = False

    @property
    def residue_level(self) -> bool:
        """Whether recall counts residues rather than annotation instances."""
        return self.type in RESIDUE_LEVEL_TYPES


def subtype_of(annotation_type: str, note: str, ligand: str) -> str:
    """What an annotation names: the ligand of a binding site, the note of other types, up to the first `;`.

    `SH3 1` -> `SH3`, `C2H2-type 7; degenerate` -> `C2H2-type`, `2` -> nothing (an instance number alone).
    """
    if annotation_type in NAMELESS_TYPES:
        return ""
    raw = ligand if annotation_type == "Binding site" else note
    text = _EVIDENCE.sub("", raw.partition(";")[0]).strip().rstrip(".").strip()
    text = _INSTANCE.sub("", _QUALIFIER.sub("", text)).strip()
    if annotation_type == "Binding site" and _WORD.match(text):
        text = text[0].lower() + text[1:]
    if _ORDINAL.fullmatch(text) or (annotation_type == "Repeat" and _REPEAT_ORDINAL.fullmatch(text)):
        return ""
    return text


def type_level_concept(annotation_type: str) -> Concept:
    """The concept that every annotation of a type belongs to."""
    name = annotation_type if annotation_type in NAMELESS_TYPES else f"{annotation_type}: any"
    return Concept(name, annotation_type, "")


def concepts_of(annotations: pd.DataFrame) -> tuple[tuple[Concept, ...], Ints]:
    """Concepts that occur in a table, and to which of them each annotation belongs.

    Args:
        annotations: Columns `type`, `note`, `ligand`.

    Returns:
        The concepts, sorted by name, and [num_annotations, 2] int64 indices into them: the type-level and the
        specific concept, -1 where there is none.
    """
    columns = annotations[["type", "note", "ligand"]].fillna("").astype(str)
    codes, unique = pd.factorize(pd.MultiIndex.from_frame(columns))
    pairs: list[tuple[Concept | None, Concept | None]] = []
    for annotation_type, note, ligand in unique:
        if annotation_type in EXCLUDED_TYPES:
            pairs.append((None, None))
            continue
        subtype = subtype_of(annotation_type, note, ligand)
        specific = Concept(f"{annotation_type}: {subtype}", annotation_type, subtype) if subtype else None
        pairs.append((type_level_concept(annotation_type), specific))
    concepts = sorted({concept for pair in pairs for concept in pair if concept}, key=lambda concept: concept.name)
    index: dict[Concept | None, int] = {concept: number for number, concept in enumerate(concepts)}
    index[None] = -1
    table = np.array([[index[broad], index[specific]] for broad, specific in pairs], dtype=np.int64).reshape(-1, 2)
    return tuple(concepts), table[codes]


def annotation_residues(
    rows: Ints, starts: Ints, ends: Ints, paired: NDArray[np.bool_], row_starts: Ints
) -> tuple[Ints, Ints]:
    """Residues of annotations, counted through all rows.

    Args:
        rows: [A] row (sequence) of each annotation.
        starts: [A] 0-based first residue in the row.
        ends: [A] one past the last residue in the row.
        paired: [A] true where only the first and the last residue are meant.
        row_starts: [num_rows + 1] number of residues before each row.

    Returns:
        Offsets [A + 1] and residues: those of annotation a are `residues[offsets[a]:offsets[a + 1]]`.
    """
    spans = ends - starts
    counts = np.where(paired, np.minimum(spans, 2), spans)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    # The second residue of a pair is its last one.
    within = np.where(np.repeat(paired, counts) & (within == 1), np.repeat(spans - 1, counts), within)
    return offsets, np.repeat(row_starts[rows] + starts, counts) + within


def check_positions(annotations: pd.DataFrame, lengths: NDArray[np.int64]) -> None:
    """Refuse annotations that do not lie inside their sequence.

    Args:
        annotations: Columns `accession`, `type`, `start`, `end`.
        lengths: [num_annotations] length of the sequence of each.

    Raises:
        DataError: Naming the first of them with 1-based positions.
    """
    start, end = annotations["start"].to_numpy(), annotations["end"].to_numpy()
    wrong = np.flatnonzero((start < 0) | (end <= start) | (end > lengths))
    if len(wrong):
        first = annotations.iloc[int(wrong[0])]
        raise DataError(
            f"{first['type']} {first['start'] + 1}..{first['end']} of {first['accession']} is outside its sequence "
            f"of {lengths[wrong[0]]} residues ({len(wrong)} such annotations)",
            where="annotations.parquet",
            fix="run ingest again: dvc repro ingest",
        )


def evaluated_concepts(
    concepts: Sequence[Concept],
    memberships: Sequence[Ints],
    accessions: Sequence[NDArray[np.object_]],
    *,
    min_instances: int,
    min_proteins: int,
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Choose the concepts frequent enough to score.

    Args:
        concepts: All concepts.
        memberships: Per split, [A, 2] concepts of its annotations (`concepts_of`).
        accessions: Per split, [A] protein of each annotation.
        min_instances: Annotations that a concept needs in every split.
        min_proteins: Proteins with one that it needs in every split.

    Returns:
        Indices of the chosen concepts, and a table of the others: concept, reason, and the number of instances and
        proteins per split. A specific concept whose annotations are all those of its type counts once.
    """
    instances = np.zeros((len(memberships), len(concepts)), dtype=np.int64)
    proteins = np.zeros_like(instances)
    for split, (membership, owners) in enumerate(zip(memberships, accessions, strict=True)):
        owner_codes = pd.factorize(owners)[0]
        for column in (0, 1):
            inside = membership[:, column] >= 0
            instances[split] += np.bincount(membership[inside, column], minlength=len(concepts))
            pairs = np.unique(np.stack([membership[inside, column], owner_codes[inside]], axis=1), axis=0)
            proteins[split] += np.bincount(pairs[:, 0], minlength=len(concepts))
    frequent = (instances >= min_instances).all(axis=0) & (proteins >= min_proteins).all(axis=0)
    index = {concept: number for number, concept in enumerate(concepts)}
    twin = np.zeros(len(concepts), dtype=bool)
    for number, concept in enumerate(concepts):
        if concept.subtype and not concept.derived:
            broad = index[type_level_concept(concept.type)]
            twin[number] = bool((instances[:, number] == instances[:, broad]).all())
    chosen = frequent & ~twin
    left_out = pd.DataFrame(
        {
            "concept": [concept.name for concept in concepts],
            "reason": np.where(frequent, "same annotations as its type", "too rare"),
            "num_instances_valid": instances[0],
            "num_instances_test": instances[1],
            "num_proteins_valid": proteins[0],
            "num_proteins_test": proteins[1],
        }
    )
    return np.flatnonzero(chosen), left_out[~chosen].reset_index(drop=True)
