"""Proteins and labels of the probes: which tasks and classes have enough examples in all three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from plmsae.evaluation.inputs import Inputs
from plmsae.evaluation.labels import Ints
from plmsae.evaluation.one_unit_probes import Bools
from plmsae.evaluation.probe_tasks import Task

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ProbeSplit:
    """Labels of one split.

    Attributes:
        proteins: Rows of `sequences.parquet`, with an index from 0.
        starts: [num_rows + 1] residues before each row.
        owners: [num_rows] number of the protein that each row is (a window) of.
        targets: Per task [E, C]; residues of all rows, or rows.
        known: Per task [E, C].
    """

    proteins: pd.DataFrame
    starts: Ints
    owners: Ints
    targets: dict[str, Bools]
    known: dict[str, Bools]

    def examples(self, rows: Ints) -> Ints:
        """Residues of the given rows, in that order."""
        counts = np.diff(self.starts)[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(np.repeat(self.starts[rows], counts) + within, dtype=np.int64)

    @property
    def residue_owners(self) -> Ints:
        """[R] number of the protein of each residue."""
        return np.repeat(self.owners, np.diff(self.starts))


@dataclass(frozen=True)
class ProbeData:
    """Everything that the probes are asked.

    Attributes:
        tasks: Tasks with at least one class left, name -> (whether proteins are the examples, classes).
        splits: By name.
        sizes: One row per class: task, class, and positives, examples and proteins with a positive of each split.
        left_out: Classes with too few examples: the same columns.
    """

    tasks: dict[str, tuple[bool, tuple[str, ...]]]
    splits: dict[str, ProbeSplit]
    sizes: pd.DataFrame
    left_out: pd.DataFrame


def load_tasks(
    inputs: Inputs,
    tasks: Sequence[Task],
    *,
    max_proteins: int | None,
    min_positives: int,
    min_proteins: int,
    seed: int,
) -> ProbeData:
    """Take the proteins that any task knows something of, and the classes with enough examples.

    Args:
        inputs: Proteins.
        tasks: Tasks.
        max_proteins: A seeded subset of this many of those proteins per split; None for all.
        min_positives: Positive examples that a class needs in each split.
        min_proteins: Proteins with one that it needs in each split.
        seed: Seed of the subset.

    Raises:
        DataError: A split is empty.
    """
    splits: dict[str, ProbeSplit] = {}
    for name in SPLITS:
        table = _known_rows(inputs.split(name, None, seed), tasks)
        if max_proteins is not None:
            accessions = np.unique(table["accession"].to_numpy(dtype=str))
            kept = np.random.default_rng(seed).permutation(accessions)[:max_proteins]
            table = table[table["accession"].isin(kept)]
        table = table.reset_index(drop=True)
        starts = np.concatenate([[0], np.cumsum(table["length"].to_numpy())]).astype(np.int64)
        owners = np.asarray(pd.factorize(table["accession"], sort=True)[0], dtype=np.int64)
        labels = {task.name: task.labels(table) for task in tasks}
        splits[name] = ProbeSplit(
            proteins=table,
            starts=starts,
            owners=owners,
            targets={task: pair[0] for task, pair in labels.items()},
            known={task: pair[1] for task, pair in labels.items()},
        )
    sizes = pd.concat([_sizes(task, splits) for task in tasks], ignore_index=True)
    enough = np.ones(len(sizes), dtype=bool)
    for name in SPLITS:
        positives, proteins = sizes[f"num_positives_{name}"], sizes[f"num_proteins_{name}"]
        enough &= (positives >= min_positives) & (proteins >= min_proteins)
        enough &= sizes[f"num_examples_{name}"] > positives
    kept_tasks: dict[str, tuple[bool, tuple[str, ...]]] = {}
    for task in tasks:
        inside = enough[sizes["task"] == task.name]
        if inside.any():
            classes = tuple(name for name, keep in zip(task.classes, inside) if keep)
            kept_tasks[task.name] = (task.per_protein, classes)
        for split in splits.values():
            split.targets[task.name] = split.targets[task.name][:, inside]
            split.known[task.name] = split.known[task.name][:, inside]
    return ProbeData(kept_tasks, splits, sizes[enough].reset_index(drop=True), sizes[~enough].reset_index(drop=True))


def _known_rows(table: pd.DataFrame, tasks: Sequence[Task]) -> pd.DataFrame:
    if any(task.known is None for task in tasks):
        return table
    known = set[str]()
    for task in tasks:
        if task.known is not None:
            known.update(task.known["accession"])
    return table[table["accession"].isin(known)]


def _sizes(task: Task, splits: dict[str, ProbeSplit]) -> pd.DataFrame:
    table = pd.DataFrame({"task": task.name, "class": list(task.classes)})
    for name, split in splits.items():
        targets, known = split.targets[task.name], split.known[task.name]
        owners: NDArray[np.int64] = split.owners if task.per_protein else split.residue_owners
        proteins = np.zeros((int(owners.max(initial=-1)) + 1, len(task.classes)), dtype=bool)
        example, number = np.nonzero(targets)
        proteins[owners[example], number] = True
        table[f"num_positives_{name}"] = targets.sum(axis=0)
        table[f"num_examples_{name}"] = known.sum(axis=0)
        table[f"num_proteins_{name}"] = proteins.sum(axis=0)
    return table
