"""What probes are asked: tasks with classes, each class with its positive residues or proteins and what is known.

A residue or protein counts as a negative example of a class only where the class is known not to be there. By default
that is all of a protein which has any annotation of the task (a protein without a solved structure has no `Helix`, and
says nothing about helices). InterProt takes the proteins that have the class itself; that is the task `interprot`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.errors import UserError, did_you_mean
from plmsae.evaluation.label_tables import read_label_table
from plmsae.evaluation.labels import Ints, concepts_of
from plmsae.proteins.coordinates import read_coordinates
from plmsae.proteins.feature_types import PAIR_TYPES
from plmsae.proteins.secondary_structure import assign_secondary_structure

Bools = NDArray[np.bool_]
UNLISTED = ("negative", "unknown")
STRUCTURE = "structure"

# Annotation type -> classes that InterProt probes (`oned_probe/annotations.py`); a class counts where its name is
# part of the note, and none stands for every annotation of the type.
INTERPROT_CLASSES: dict[str, tuple[str, ...]] = {
    "DNA binding": ("H-T-H motif", "Homeobox", "Nuclear receptor", "HMG box"),
    "Motif": (
        "Nuclear localization signal",
        "Nuclear export signal",
        "DEAD box",
        "Cell attachment site",
        "JAMM motif",
        "SH3-binding",
        "Cysteine switch",
    ),
    "Topological domain": (
        "Cytoplasmic",
        "Extracellular",
        "Lumenal",
        "Periplasmic",
        "Mitochondrial intermembrane",
        "Mitochondrial matrix",
        "Virion surface",
        "Intravirion",
    ),
    "Domain": (
        "Protein kinase",
        "tr-type G",
        "Radical SAM core",
        "ABC transporter",
        "Helicase ATP-binding",
        "Glutamine amidotransferase type-1",
        "ATP-grasp",
        "S4 RNA-binding",
    ),
    "Active site": ("Proton acceptor", "Proton donor", "Nucleophile", "Charge relay system"),
    "Signal peptide": ("",),
    "Transit peptide": ("", "Mitochondrion", "Chloroplast"),
    "Helix": ("",),
    "Beta strand": ("",),
    "Turn": ("",),
    "Coiled coil": ("",),
    "Region": ("Disordered", "Interaction with tRNA"),
}


@dataclass(frozen=True)
class Task:
    """Binary questions, one per class.

    Attributes:
        name: Unique name.
        per_protein: Whether proteins are the examples, not residues.
        classes: Names of the C classes.
        positives: Spans of positive residues: accession, start and end (0-based half-open, in the protein), and class.
            Where proteins are the examples, a protein with any span of a class is positive.
        known: Spans in which classes are known, with class -1 for all classes; None: everything is known.
    """

    name: str
    per_protein: bool
    classes: tuple[str, ...]
    positives: pd.DataFrame
    known: pd.DataFrame | None

    def labels(self, proteins: pd.DataFrame) -> tuple[Bools, Bools]:
        """Targets and knowledge [E, C] of the residues of the given rows, or of the rows themselves.

        Args:
            proteins: Rows of `sequences.parquet`.
        """
        lengths = proteins["length"].to_numpy().astype(np.int64)
        targets = self._mark(self.positives, proteins, lengths)
        if self.known is None:
            return targets, np.ones_like(targets)
        return targets, self._mark(self.known, proteins, lengths) | targets

    def _mark(self, spans: pd.DataFrame, proteins: pd.DataFrame, lengths: Ints) -> Bools:
        starts = np.concatenate([[0], np.cumsum(lengths)])
        rows = pd.DataFrame(
            {
                "accession": proteins["accession"].to_numpy(),
                "row": np.arange(len(proteins)),
                "offset": proteins["offset"].to_numpy(),
            }
        )
        placed = rows.merge(spans, on="accession")
        row = placed["row"].to_numpy()
        offset, length = placed["offset"].to_numpy(), lengths[row]
        first = np.clip(placed["start"].to_numpy() - offset, 0, length)
        last = np.clip(placed["end"].to_numpy() - offset, 0, length)
        number = placed["class"].to_numpy()
        inside = last > first
        row, first, last, number = row[inside], first[inside], last[inside], number[inside]
        if self.per_protein:
            marked = np.zeros((len(proteins), len(self.classes) + 1), dtype=bool)
            marked[row, number] = True
        else:
            marked = np.zeros((int(starts[-1]), len(self.classes) + 1), dtype=bool)
            counts = last - first
            within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
            marked[np.repeat(starts[row] + first, counts) + within, np.repeat(number, counts)] = True
        return np.asarray(marked[:, :-1] | marked[:, -1:])  # class -1 is the last column: it marks every class


def spans_of(annotations: pd.DataFrame, classes: Ints | int) -> pd.DataFrame:
    """Spans of annotations in their protein; a linked pair is two residues."""
    start = annotations["start"].to_numpy() + annotations["offset"].to_numpy()
    end = annotations["end"].to_numpy() + annotations["offset"].to_numpy()
    table = pd.DataFrame({"accession": annotations["accession"].to_numpy(), "start": start, "end": end})
    table["class"] = classes
    paired = annotations["type"].isin(PAIR_TYPES).to_numpy()
    if not paired.any():
        return table
    pairs = table[paired]
    return pd.concat(
        [table[~paired], pairs.assign(end=pairs["start"] + 1), pairs.assign(start=pairs["end"] - 1)], ignore_index=True
    )


def whole(accessions: NDArray[np.object_], classes: Ints | int = -1) -> pd.DataFrame:
    """Spans of whole proteins, whatever their length."""
    table = pd.DataFrame({"accession": accessions, "start": 0, "end": np.iinfo(np.int32).max})
    table["class"] = classes
    return table.drop_duplicates(ignore_index=True)


def annotation_task(
    name: str, annotations: pd.DataFrame, types: Sequence[str], *, specific: bool, per_protein: bool = False
) -> Task:
    """A task of annotation types; every protein with any of them is known.

    Args:
        name: Its name.
        annotations: All annotations (`annotations.parquet`).
        types: Types.
        specific: Whether what a note or ligand names is a class as well (`evaluation/labels.py`), not only the type.
        per_protein: Whether proteins are the examples; then all proteins are known.
    """
    own = annotations[annotations["type"].isin(list(types))]
    concepts, membership = concepts_of(own)
    wanted = [number for number, concept in enumerate(concepts) if specific or not concept.subtype]
    classes = tuple(concepts[number].name for number in wanted)
    spans = []
    for place, number in enumerate(wanted):
        spans.append(spans_of(own[(membership == number).any(axis=1)], place))
    positives = pd.concat(spans, ignore_index=True) if spans else spans_of(own, 0)
    known = None if per_protein else whole(own["accession"].to_numpy())
    return Task(name, per_protein, classes, positives, known)


def interprot_task(annotations: pd.DataFrame) -> Task:
    """InterProt's classes, each known on the proteins that have it."""
    classes: list[str] = []
    positives, known = [], []
    for kind, parts in INTERPROT_CLASSES.items():
        own = annotations[annotations["type"] == kind]
        notes = own["note"].fillna("")
        for part in parts:
            inside = own[notes.str.contains(part, regex=False)]
            positives.append(spans_of(inside, len(classes)))
            known.append(whole(inside["accession"].to_numpy(), len(classes)))
            classes.append(f"{kind}: {part}" if part else kind)
    return Task(
        "interprot",
        False,
        tuple(classes),
        pd.concat(positives, ignore_index=True),
        pd.concat(known, ignore_index=True),
    )


def table_task(path: Path, sequences: pd.DataFrame, unlisted: str) -> Task:
    """The task of a user's table (`label_tables.read_label_table`).

    Args:
        path: The CSV file.
        sequences: Rows of `sequences.parquet`.
        unlisted: What a residue of a listed protein is that the table does not list: `negative`, or `unknown`.

    Raises:
        DataError: A row is wrong; names the line.
    """
    table = read_label_table(path, sequences)
    rows = table.rows.rename(columns={"position": "start", "label": "class"})
    spans = rows.assign(end=rows["start"] + 1)
    if table.protein_level or unlisted == "negative":
        known = whole(rows["accession"].to_numpy())
    else:
        known = spans.assign(**{"class": -1}).drop_duplicates(ignore_index=True)
    return Task("labels", table.protein_level, table.labels, spans[spans["class"] >= 0], known)


def structure_task(folder: Path, sequences: pd.DataFrame) -> Task:
    """Helices and strands of the structures that `ingest` placed, known where there are coordinates.

    Args:
        folder: Output folder of `ingest`.
        sequences: Rows of `sequences.parquet`.

    Raises:
        UserError: `ingest` was run without structures.
    """
    positives, known = [], []
    for accession, offset, ca in zip(
        sequences["accession"], sequences["offset"], read_coordinates(folder, sequences), strict=True
    ):
        if ca is None:
            continue
        there = np.flatnonzero(np.isfinite(ca).all(axis=1))
        letters = assign_secondary_structure(ca[there], there.astype(np.int64))
        for number, letter in enumerate("HE"):
            positives += [(accession, offset + a, offset + b, number) for a, b in _stretches(there[letters == letter])]
        known += [(accession, offset + a, offset + b, -1) for a, b in _stretches(there)]
    columns = ["accession", "start", "end", "class"]
    return Task(
        STRUCTURE,
        False,
        ("Helix", "Strand"),
        pd.DataFrame(positives, columns=columns),
        pd.DataFrame(known, columns=columns),
    )


def _stretches(places: Ints) -> list[tuple[int, int]]:
    """Ascending places as half-open stretches."""
    if len(places) == 0:
        return []
    breaks = np.flatnonzero(np.diff(places) != 1)
    first, last = np.append(places[0], places[breaks + 1]), np.append(places[breaks], places[-1]) + 1
    return list(zip(first.tolist(), last.tolist()))


_TASKS: dict[str, Callable[[pd.DataFrame], Task]] = {
    "secondary_structure": lambda a: annotation_task(
        "secondary_structure", a, ("Helix", "Beta strand", "Turn"), specific=False
    ),
    "topology": lambda a: annotation_task(
        "topology", a, ("Topological domain", "Transmembrane", "Intramembrane"), specific=True
    ),
    "ligand_binding": lambda a: annotation_task("ligand_binding", a, ("Binding site",), specific=True),
    "localisation_signals": lambda a: annotation_task(
        "localisation_signals", a, ("Signal peptide", "Transit peptide", "Transmembrane"), specific=True,
        per_protein=True,
    ),
    "interprot": interprot_task,
}  # fmt: skip


def task_names() -> tuple[str, ...]:
    """Tasks that need no table of the user: of annotations, and of structures."""
    return (*_TASKS, STRUCTURE)


def make_tasks(
    names: Sequence[str],
    annotations: pd.DataFrame,
    sequences: pd.DataFrame,
    labels: Path | None,
    unlisted: str,
    folder: Path,
) -> list[Task]:
    """Tasks by name, and the one of a label table if there is one.

    Args:
        names: Some of `task_names`.
        annotations: All annotations.
        sequences: Rows of `sequences.parquet`.
        labels: A user's table, or None.
        unlisted: See `table_task`.
        folder: Output folder of `ingest`, for structures.

    Raises:
        UserError: There is no such task, none is asked for, or there are no structures for it.
        DataError: A row of the label table is wrong.
    """
    for name in names:
        if name not in task_names():
            raise UserError(f"unknown task '{name}'", where="tasks", fix=did_you_mean(name, task_names()))
    if unlisted not in UNLISTED:
        raise UserError(f"unlisted '{unlisted}'", where="unlisted", fix=did_you_mean(unlisted, UNLISTED))
    tasks = [
        structure_task(folder, sequences) if name == STRUCTURE else _TASKS[name](annotations)
        for name in dict.fromkeys(names)
    ]
    if labels is not None:
        tasks.append(table_task(labels, sequences, unlisted))
    if not tasks:
        raise UserError(
            "no task is asked for", where="tasks", fix=f"name some of {', '.join(task_names())}, or give labels"
        )
    return tasks
